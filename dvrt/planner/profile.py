"""What a model costs on a machine: step times, sizes, bandwidths; as measured, derived or imported.

Knows the file's form, not how the numbers come about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError
from dvrt.planner.model_info import read_json
from dvrt.planner.parts import (
    LaunchFigures,
    RuntimeFigures,
    check_fields,
    check_numbers,
    read_optional,
    read_part,
)
from dvrt.planner.step_fit import StepFit, scale_samples, step_fit_from_json

SCHEMA = "dvrt-profile-1"
MAX_LAYERS = 10_000
ORIGINS = ("measured", "derived", "imported")
OPTIONAL_FITS = ("head", "prompt_stage", "token_stage")
FITS = ("prompt", "token", *OPTIONAL_FITS)
SHIPPED = Path(__file__).parent / "profiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """Sizes of a model; weights and KV of one layer, in bytes as served.

    With ``tied_head`` the head's matrix is the embedding's: a second copy only when first and last
    stage are two workers. ``positions`` is the longest context that the model has positions for,
    None where there is no limit or nobody knows it.
    """

    name: str
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int
    layer_weight_bytes: int
    embedding_bytes: int
    head_bytes: int
    kv_bytes_per_token: int
    tied_head: bool
    positions: int | None = None

    def __post_init__(self) -> None:
        check_numbers("model", self, may_be_zero=("embedding_bytes", "head_bytes"))
        if self.layers > MAX_LAYERS:
            raise ConfigError(f"model.layers is {self.layers}; at most {MAX_LAYERS}")
        expected = 2 * self.kv_heads * self.head_dim * self.dtype_bytes
        if self.kv_bytes_per_token != expected:
            raise ConfigError(
                f"model.kv_bytes_per_token is {self.kv_bytes_per_token}, which contradicts "
                f"2 x {self.kv_heads} heads x {self.head_dim} x {self.dtype_bytes} = {expected}"
            )

    def check_context(self, longest: int) -> None:
        """Raise ConfigError for contexts that go beyond the model's positions."""
        if self.positions is not None and longest > self.positions:
            raise ConfigError(
                f"the workload has contexts of {longest} tokens; {self.name} has "
                f"{self.positions} positions"
            )

    @property
    def weight_bytes(self) -> int:
        """The whole model's, a tied matrix counted once."""
        return self.layers * self.layer_weight_bytes + self.ends_bytes(1)

    def ends_bytes(self, stages: int) -> int:
        """What embedding and head add to the stage that holds more of them."""
        if stages > 1:
            return max(self.embedding_bytes, self.head_bytes)
        return self.embedding_bytes + (0 if self.tied_head else self.head_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFigures:
    """One machine: its GPUs together. Rates are bytes a second in one direction.

    ``price_per_hour`` is None where nobody gave one; ``hop_s`` is what a small message takes from
    one process to another, 0 where nobody measured it.
    """

    name: str
    gpus: int
    memory_bytes: int
    host_memory_bytes: int
    host_to_device: float
    device_to_host: float
    network: float
    gpu_link: float
    disk: float
    price_per_hour: float | None = None
    hop_s: float = 0.0

    def __post_init__(self) -> None:
        check_numbers("machine", self, may_be_zero=("price_per_hour", "hop_s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFigures:
    """Parts of a recovery that do not depend on the split.

    ``load_s`` is the measured load of the whole model, ``restore`` the bytes a second at which lost
    KV comes back from a replica; None where they follow from the machine's rates.
    """

    detect_s: float
    restart_s: float
    load_s: float | None = None
    restore: float | None = None

    def __post_init__(self) -> None:
        check_numbers("recovery", self, may_be_zero=("detect_s", "restart_s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model on one kind of machine.

    ``prompt`` and ``token`` are times of one layer; ``prompt_stage`` and ``token_stage`` what every
    stage adds to them whatever its layers; ``head`` what the last stage adds to each step. These
    three are None where the layers' times already have them in them. Prompts were computed
    ``chunk_tokens`` at a time, 0 for whole. ``runtime`` is what dvrt itself costs, None where it
    was not measured; ``launch`` the options that it was measured with. ``note`` says in words where
    the numbers come from.
    """

    name: str
    origin: str
    note: str
    model: ModelFigures
    machine: MachineFigures
    prompt: StepFit
    token: StepFit
    head: StepFit | None
    recovery: RecoveryFigures
    prompt_stage: StepFit | None = None
    token_stage: StepFit | None = None
    chunk_tokens: int = 0
    runtime: RuntimeFigures | None = None
    launch: LaunchFigures | None = None

    def __post_init__(self) -> None:
        if type(self.chunk_tokens) is not int or self.chunk_tokens < 0:
            raise ConfigError(f"chunk_tokens is {self.chunk_tokens!r}; a whole number from 0 up")
        if self.origin not in ORIGINS:
            raise ConfigError(f"origin is {self.origin!r}; one of {', '.join(ORIGINS)}")
        if self.prompt.batches != self.token.batches:
            raise ConfigError(
                f"prompt times are for batches {self.prompt.batches}, token times for "
                f"{self.token.batches}; a profile needs both for each"
            )

    def stage_prompt_s(self, layers: float, batch: int, length: float) -> float:
        """A prompt step of the slowest stage: so many layers and the head, rows of one length."""
        return self.mean_prompt_s(layers, batch, length, length * length)

    def mean_prompt_s(
        self, layers: float, batch: int, mean_length: float, mean_square: float
    ) -> float:
        """The same for rows of unequal lengths, from their first two moments."""
        seconds = layers * self.prompt.mean_seconds(batch, mean_length, mean_square)
        if self.prompt_stage:
            seconds += self.prompt_stage.mean_seconds(batch, mean_length, mean_square)
        return seconds + self.head_s(batch)

    def stage_token_s(self, layers: float, batch: int, context: float) -> float:
        """A token step of the slowest stage at this mean context."""
        seconds = layers * self.token.seconds(batch, context)
        if self.token_stage:
            seconds += self.token_stage.seconds(batch, context)
        return seconds + self.head_s(batch)

    def head_s(self, batch: int) -> float:
        """The last stage's extra for the logits of so many rows."""
        return self.head.seconds(batch, 1) if self.head else 0.0

    def load_s(self, layers: int) -> float:
        """Getting the weights of so many layers to the device: measured, or by the rates."""
        if self.recovery.load_s is not None:
            return self.recovery.load_s * layers / self.model.layers
        weights = layers * self.model.layer_weight_bytes
        return weights / min(self.machine.disk, self.machine.host_to_device)

    @property
    def restore(self) -> float:
        """Bytes a second at which lost KV comes back from a replica."""
        return self.recovery.restore or self.machine.network

    def to_json(self) -> dict[str, Any]:
        """The file's content; ``profile_from_json`` inverts it."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "origin": self.origin,
            "note": self.note,
            "model": asdict(self.model),
            "machine": asdict(self.machine),
            "recovery": asdict(self.recovery),
            "chunk_tokens": self.chunk_tokens,
            **{name: fit.to_json() if fit else None for name, fit in self._fits()},
            **({"runtime": asdict(self.runtime)} if self.runtime else {}),
            **({"launch": asdict(self.launch)} if self.launch else {}),
        }

    def _fits(self) -> Iterator[tuple[str, StepFit | None]]:
        for name in FITS:
            yield name, getattr(self, name)

    def with_memory(self, memory_bytes: int | None, host_memory_bytes: int | None) -> Profile:
        """The same on machines with other sizes of memory; None leaves one as it is."""
        machine = self.machine
        if memory_bytes is not None:
            machine = replace(machine, memory_bytes=memory_bytes)
        if host_memory_bytes is not None:
            machine = replace(machine, host_memory_bytes=host_memory_bytes)
        return replace(self, machine=machine)

    def with_gpus(self, gpus: int) -> Profile:
        """The same model tensor-parallel over another number of GPUs in one machine.

        An extrapolation: compute and memory traffic divide, and each layer adds two all-reduces of
        its activations over the GPU link. Sizes, host memory and price follow the number of GPUs,
        the network does not.
        """
        if gpus == self.machine.gpus:
            return self
        if gpus < 1:
            raise ConfigError(f"{gpus} GPUs; a machine needs at least one")
        if self.machine.gpus != 1:
            raise ConfigError(f"{self.name} is for {self.machine.gpus} GPUs; start from one of 1")
        sent = 2 * self.model.hidden * self.model.dtype_bytes
        reduce_s = 2 * (gpus - 1) / gpus * sent / self.machine.gpu_link
        return replace(
            self,
            name=f"{self.name}-x{gpus}",
            note=f"{self.note} Extrapolated from 1 to {gpus} GPUs a machine.",
            machine=_times_gpus(self.machine, gpus),
            prompt=scale_samples(self.prompt, 1 / gpus, reduce_s, "prompt"),
            token=scale_samples(self.token, 1 / gpus, reduce_s, "token"),
            head=scale_samples(self.head, 1 / gpus, 0.0, "token") if self.head else None,
        )


def _times_gpus(machine: MachineFigures, gpus: int) -> MachineFigures:
    price = machine.price_per_hour
    return replace(
        machine,
        name=f"{gpus} x {machine.name}",
        gpus=gpus,
        memory_bytes=machine.memory_bytes * gpus,
        host_memory_bytes=machine.host_memory_bytes * gpus,
        host_to_device=machine.host_to_device * gpus,
        device_to_host=machine.device_to_host * gpus,
        price_per_hour=None if price is None else round(price * gpus, 6),
    )


def read_profile(path: Path) -> Profile:
    """Read and check a profile file; ConfigError names the file and the field."""
    document = read_json(path)
    try:
        return profile_from_json(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile in the form that ``read_profile`` reads; equal profiles, equal bytes."""
    path.write_text(profile_text(profile))


def profile_text(profile: Profile) -> str:
    """The bytes of the file: JSON with one sample a line."""
    text = json.dumps(profile.to_json(), indent=2)
    return _join_numbers(text) + "\n"


def open_profile(name: str) -> Profile:
    """A profile file by path, or a shipped one by name, such as ``opt-66b-a100-80``."""
    path = Path(name)
    if path.suffix == ".json" or path.exists():
        return read_profile(path)
    shipped = SHIPPED / f"{name.lower()}.json"
    if not shipped.exists():
        known = ", ".join(shipped_profiles())
        raise ConfigError(f"no profile {name!r}: neither a file nor one of {known}")
    return read_profile(shipped)


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the package; all of them derived."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def profile_from_json(document: Any) -> Profile:
    """Check and convert a file's content; ConfigError names the field."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ConfigError(f"not a profile: its schema must be {SCHEMA!r}")
    check_fields(Profile, {key: value for key, value in document.items() if key != "schema"})
    return Profile(
        name=str(document["name"]),
        origin=document["origin"],
        note=str(document["note"]),
        model=read_part(ModelFigures, document["model"], "model"),
        machine=read_part(MachineFigures, document["machine"], "machine"),
        prompt=step_fit_from_json(document["prompt"], "prompt"),
        token=step_fit_from_json(document["token"], "token"),
        recovery=read_part(RecoveryFigures, document["recovery"], "recovery"),
        chunk_tokens=document.get("chunk_tokens", 0),
        runtime=read_optional(RuntimeFigures, document.get("runtime"), "runtime"),
        launch=read_optional(LaunchFigures, document.get("launch"), "launch"),
        **{name: _fit_or_none(document.get(name), name) for name in OPTIONAL_FITS},
    )


def _fit_or_none(entry: Any, where: str) -> StepFit | None:
    return None if entry is None else step_fit_from_json(entry, where)


def _join_numbers(text: str) -> str:
    """Put each innermost list of an indented JSON text on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
