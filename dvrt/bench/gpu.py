"""``bench gpu``: what copies between a GPU and its host reach, as shares of what the links allow.

Pinned memory against pageable, one packed move against a copy for each run, copies beside compute
against one after the other. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dvrt.bench.common import Measured, median_ratio, spread
from dvrt.buffers import Region
from dvrt.cuda.device import Device, open_device
from dvrt.cuda.fences import all_done
from dvrt.errors import ConfigError
from dvrt.strided import StridedCopy

WHOLE_BYTES = 64 << 20
CASES = {"1.5KiB": (768, 1536), "8KiB": (640, 8192)}
"""Scattered chunks of a token step: how many, and how large; each in a gap of its own size."""
COMPUTE_WIDTH = 4096
STEP_S = 60.0

Side = Callable[[], Awaitable[float]]
Compute = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the hardware could do at best, in bytes a second; None where nothing says it."""

    pcie: float | None = None
    memory: float | None = None


def measure(*, quick: bool) -> Measured:
    """Figures of the first GPU, sides taking turns; ratios of medians."""
    return asyncio.run(_measure_first(repeats=5 if quick else 30))


async def _measure_first(repeats: int) -> Measured:
    try:
        device = open_device("cuda:0")
    except ConfigError as error:
        return Measured(results={"gpus": 0}, notes=[f"nothing measured: {error}"])
    try:
        compute = await device.run(_matrix_product)
        return await measure_on(device, compute, find_limits(), repeats=repeats)
    finally:
        await device.aclose()


async def measure_on(
    device: Device,
    compute: Compute,
    limits: Limits,
    *,
    repeats: int,
    whole_bytes: int = WHOLE_BYTES,
) -> Measured:
    """The same on any device. ``compute`` is what copies run beside."""
    sides = _whole_copies(device, whole_bytes)
    for name, (n_chunks, chunk_bytes) in CASES.items():
        sides |= _scattered(device, name, n_chunks, chunk_bytes)
    sides |= _overlap(device, compute, whole_bytes)
    taken = await _take_turns(sides, repeats)
    ratios = {
        "pinned_vs_pageable_out": median_ratio(taken, "pinned_out", "pageable_out"),
        "pinned_vs_pageable_in": median_ratio(taken, "pinned_in", "pageable_in"),
        "overlap_vs_none": median_ratio(taken, "overlapped", "one_by_one"),
    }
    for name in CASES:
        for way in ("out", "in"):
            packed, runs = f"packed_{name}_{way}", f"runs_{name}_{way}"
            ratios[f"packed_vs_runs_{name}_{way}"] = median_ratio(taken, packed, runs)
    shares, notes = _shares(taken, limits)
    return Measured(
        results={
            "gpu": device.name,
            "pcie_limit_gb_per_s": _giga(limits.pcie),
            "memory_limit_gb_per_s": _giga(limits.memory),
            **{name: spread(values) for name, values in taken.items()},
        },
        ratios=ratios | shares,
        notes=["GB/s; overlapped and one_by_one count the bytes copied beside compute", *notes],
    )


def _shares(taken: Mapping[str, list[float]], limits: Limits) -> tuple[dict[str, float], list[str]]:
    """Medians over the limits that are known; a note for each that is not."""
    wanted = [("pcie", name, limits.pcie) for name in ("pinned_out", "pinned_in")]
    wanted += [("pcie", f"packed_{name}_out", limits.pcie) for name in CASES]
    wanted += [("memory", "within", limits.memory)]
    shares = {
        f"{limit}_share_{name}": spread(taken[name])["median"] * 1e9 / value
        for limit, name, value in wanted
        if value is not None
    }
    unknown = {limit for limit, _, value in wanted if value is None}
    return shares, [f"the limit of {limit} is not known here: no share of it" for limit in unknown]


async def _take_turns(sides: Mapping[str, Side], repeats: int) -> dict[str, list[float]]:
    """GB/s of each side; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, repeats):
        for name, side in sides.items():
            figure = await side()
            if number >= 0:
                taken[name].append(figure)
    return taken


async def _timed(nbytes: int, work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return nbytes / (time.perf_counter() - began) / 1e9


def _whole_copies(device: Device, nbytes: int) -> dict[str, Side]:
    """One contiguous copy each; within the device a byte is read once and written once."""
    memory, other = device.alloc(nbytes), device.alloc(nbytes)
    hosts = {"pinned": device.alloc_host(nbytes), "pageable": Region.of(np.ones(nbytes, np.uint8))}
    whole = StridedCopy(
        run_bytes=nbytes,
        shape=(),
        source_offset=0,
        source_strides=(),
        target_offset=0,
        target_strides=(),
    )
    sides: dict[str, Side] = {
        "within": lambda: _timed(
            2 * nbytes, device.copy_within(other, memory, [whole]).done(deadline_s=STEP_S)
        )
    }
    for name, host in hosts.items():
        sides[f"{name}_out"] = lambda host=host: _timed(  # type: ignore[misc]
            nbytes, device.copy_out(host, memory).done(deadline_s=STEP_S)
        )
        sides[f"{name}_in"] = lambda host=host: _timed(  # type: ignore[misc]
            nbytes, device.copy_in(memory, host).done(deadline_s=STEP_S)
        )
    return sides


def _scattered(device: Device, name: str, n_chunks: int, chunk_bytes: int) -> dict[str, Side]:
    """A token step's chunks as one packed move, and as a copy for each."""
    nbytes, stride = n_chunks * chunk_bytes, 2 * chunk_bytes
    memory, staging = device.alloc(n_chunks * stride), device.alloc_host(nbytes)
    block = StridedCopy(
        run_bytes=chunk_bytes,
        shape=(n_chunks,),
        source_offset=0,
        source_strides=(stride,),
        target_offset=0,
        target_strides=(chunk_bytes,),
    )
    pairs = [
        (staging.part(i * chunk_bytes, chunk_bytes), memory.part(i * stride, chunk_bytes))
        for i in range(n_chunks)
    ]

    async def runs_out() -> None:
        await all_done([device.copy_out(here, there) for here, there in pairs], deadline_s=STEP_S)

    async def runs_in() -> None:
        await all_done([device.copy_in(there, here) for here, there in pairs], deadline_s=STEP_S)

    async def packed_out() -> None:
        await device.pack(staging, memory, [block]).done(deadline_s=STEP_S)

    async def packed_in() -> None:
        await device.unpack(memory, staging, [block.reversed()]).done(deadline_s=STEP_S)

    return {
        f"packed_{name}_out": lambda: _timed(nbytes, packed_out()),
        f"packed_{name}_in": lambda: _timed(nbytes, packed_in()),
        f"runs_{name}_out": lambda: _timed(nbytes, runs_out()),
        f"runs_{name}_in": lambda: _timed(nbytes, runs_in()),
    }


def _overlap(device: Device, compute: Compute, nbytes: int) -> dict[str, Side]:
    """Compute and a copy out, one after the other and beside each other."""
    memory, host = device.alloc(nbytes), device.alloc_host(nbytes)

    async def copy() -> None:
        await device.copy_out(host, memory).done(deadline_s=STEP_S)

    async def one_by_one() -> None:
        await device.run(compute)
        await copy()

    async def overlapped() -> None:
        await asyncio.gather(device.run(compute), copy())

    return {
        "one_by_one": lambda: _timed(nbytes, one_by_one()),
        "overlapped": lambda: _timed(nbytes, overlapped()),
    }


def _matrix_product() -> Compute:
    """A product that takes a GPU about as long as a large copy; its memory is made once."""
    import torch

    factor = torch.ones((COMPUTE_WIDTH, COMPUTE_WIDTH), dtype=torch.float16, device="cuda:0")
    result = torch.empty_like(factor)

    def compute() -> None:
        for _ in range(5):
            torch.mm(factor, factor, out=result)

    return compute


def find_limits() -> Limits:
    """The first GPU's, from what PyTorch and the kernel say of it."""
    import torch

    about: Any = torch.cuda.get_device_properties(0)
    clock_khz, bus_bits = (
        getattr(about, name, None) for name in ("memory_clock_rate", "memory_bus_width")
    )
    domain, bus, slot = (
        getattr(about, f"pci_{name}_id", 0) for name in ("domain", "bus", "device")
    )
    folder = Path(f"/sys/bus/pci/devices/{domain:04x}:{bus:02x}:{slot:02x}.0")
    pcie = pcie_limit(*(_content(folder / f"max_link_{name}") for name in ("speed", "width")))
    memory = 2 * clock_khz * 1e3 * bus_bits / 8 if clock_khz and bus_bits else None
    return Limits(pcie=pcie, memory=memory)


def pcie_limit(speed: str, width: str) -> float | None:
    """Bytes a second one way, of "32.0 GT/s PCIe" and "16"; None for anything else."""
    try:
        transfers, lanes = float(speed.split()[0]) * 1e9, int(width)
    except (ValueError, IndexError):
        return None
    coding = 0.8 if transfers <= 5e9 else 128 / 130
    return transfers * lanes * coding / 8 if transfers * lanes > 0 else None


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _giga(value: float | None) -> float | str:
    return "unknown" if value is None else value / 1e9
