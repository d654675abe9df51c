"""Profiles derived from peak rates, for hardware that is not here. Never a measurement.

A layer's step takes the longer of its arithmetic at a share of peak and its memory traffic at a
share of the bandwidth. Knows shapes and rates; says "derived" in all that it makes.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError
from dvrt.planner.profile import MachineFigures, ModelFigures, Profile, RecoveryFigures
from dvrt.planner.step_fit import Sample, fit_steps

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PROMPT_LENGTHS = (256, 512, 1000, 2000)
CONTEXTS = (1, 256, 512, 1000, 2000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU and its share of a machine: peak rates a second, prices an hour.

    ``compute_share`` and ``memory_share`` are what prompt and token steps reach of the two peaks.
    """

    name: str
    peak_flops: float
    memory_bandwidth: float
    memory_bytes: int
    host_memory_bytes: int
    host_to_device: float
    device_to_host: float
    network: float
    gpu_link: float
    disk: float = 2e9
    price_per_hour: float | None = None
    compute_share: float = 0.5
    memory_share: float = 0.7
    layer_overhead_s: float = 0.0
    detect_s: float = 0.5
    restart_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("compute_share", "memory_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"gpu.{name} is {getattr(self, name)}; above 0 and at most 1")
        for name in ("peak_flops", "memory_bandwidth"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"gpu.{name} is {value}; it must be above 0")
        if not (math.isfinite(self.layer_overhead_s) and self.layer_overhead_s >= 0):
            raise ConfigError(f"gpu.layer_overhead_s is {self.layer_overhead_s}; at least 0")

    def machine(self) -> MachineFigures:
        return MachineFigures(
            name=self.name,
            gpus=1,
            memory_bytes=self.memory_bytes,
            host_memory_bytes=self.host_memory_bytes,
            host_to_device=self.host_to_device,
            device_to_host=self.device_to_host,
            network=self.network,
            gpu_link=self.gpu_link,
            disk=self.disk,
            price_per_hour=self.price_per_hour,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder's dimensions. ``gated`` is Llama's three-matrix feed-forward.

    ``positions`` are the rows of a learned table of positions, which is part of the embedding;
    ``longest`` is the longest context, 0 for no limit.
    """

    name: str
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    positions: int = 0
    longest: int = 0
    gated: bool = False
    tied: bool = True
    dtype_bytes: int = 2

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "kv_heads", "head_dim", "feed_forward", "vocabulary"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{self.name}: {name} is {getattr(self, name)}; at least 1")

    @property
    def layer_parameters(self) -> int:
        """Of one layer: attention, feed-forward, and for the ungated families biases and norms."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * self.head_dim
        if self.gated:
            return attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        return attention + 2 * self.hidden * self.feed_forward + self.feed_forward + 9 * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.kv_heads * self.head_dim * self.dtype_bytes

    def figures(self) -> ModelFigures:
        embedding = (self.vocabulary + self.positions) * self.hidden * self.dtype_bytes
        return ModelFigures(
            name=self.name,
            layers=self.layers,
            hidden=self.hidden,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype_bytes=self.dtype_bytes,
            layer_weight_bytes=self.layer_parameters * self.dtype_bytes,
            embedding_bytes=embedding,
            head_bytes=self.vocabulary * self.hidden * self.dtype_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            tied_head=self.tied,
            positions=self.longest or None,
        )


def derive_profile(shape: Shape, gpu: Gpu, name: str | None = None) -> Profile:
    """The profile of ``shape`` on one ``gpu``, marked as derived."""
    prompts = [
        (batch, length, _layer_s(shape, gpu, batch, length, length / 2))
        for batch in BATCHES
        for length in PROMPT_LENGTHS
    ]
    tokens = [
        (batch, context, _layer_s(shape, gpu, batch, 1, context))
        for batch in BATCHES
        for context in CONTEXTS
    ]
    heads: list[Sample] = [(batch, 1, _head_s(shape, gpu, batch)) for batch in BATCHES]
    return Profile(
        name=name or f"{shape.name}-{gpu.name}".lower(),
        origin="derived",
        note=(
            f"Derived, not measured: the longer of arithmetic at {gpu.compute_share:.0%} of "
            f"{gpu.peak_flops / 1e12:g} Tflop/s and memory traffic at {gpu.memory_share:.0%} of "
            f"{gpu.memory_bandwidth / 1e9:g} GB/s."
        ),
        model=shape.figures(),
        machine=gpu.machine(),
        prompt=fit_steps(prompts),
        token=fit_steps(tokens, ("1", "b", "bl")),
        head=fit_steps(heads, ("1", "b")),
        recovery=RecoveryFigures(detect_s=gpu.detect_s, restart_s=gpu.restart_s),
    )


def _layer_s(shape: Shape, gpu: Gpu, batch: int, new: int, mean_context: float) -> float:
    """One layer over ``batch`` rows of ``new`` tokens that see ``mean_context`` entries each."""
    tokens = batch * new
    width = shape.hidden
    flops = tokens * (2 * shape.layer_parameters + 4 * mean_context * width)
    context_read = mean_context if new == 1 else new
    traffic = batch * context_read * shape.kv_bytes_per_token
    traffic += shape.layer_parameters * shape.dtype_bytes
    return _seconds(gpu, flops, traffic) + gpu.layer_overhead_s


def _head_s(shape: Shape, gpu: Gpu, batch: int) -> float:
    parameters = shape.vocabulary * shape.hidden
    return _seconds(gpu, 2 * batch * parameters, parameters * shape.dtype_bytes)


def _seconds(gpu: Gpu, flops: float, traffic: float) -> float:
    compute_s = flops / (gpu.peak_flops * gpu.compute_share)
    memory_s = traffic / (gpu.memory_bandwidth * gpu.memory_share)
    return float(f"{max(compute_s, memory_s):.9g}")


def read_gpu(path: Path) -> Gpu:
    """A GPU from a TOML file's table ``[gpu]``; ConfigError names an unknown or missing key."""
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    table: Any = document.get("gpu")
    if not isinstance(table, dict) or set(document) != {"gpu"}:
        raise ConfigError(f"{path} must hold one table, [gpu]")
    known = {field.name for field in fields(Gpu)}
    if unknown := sorted(set(table) - known):
        raise ConfigError(f"{path}: unknown keys {unknown}; known are {sorted(known)}")
    try:
        return Gpu(**table)
    except TypeError as error:
        raise ConfigError(
            f"{path}: [gpu] lacks a key or has one of the wrong type: {error}"
        ) from error
