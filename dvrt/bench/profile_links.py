"""Bandwidths of this machine: memory, device, between two processes, disk; and a hop's time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvrt.bench.transfer_cases import CASES, MIB, Case, Pool
from dvrt.bench.transfer_peer import Kind, open_peer
from dvrt.bench.transfer_sides import DEADLINE_S, ChannelSide, Memcpy, Side, channel_trips
from dvrt.errors import ModelError
from dvrt.processes.worker_process import loop_factory
from dvrt.transport import connect

REPEATS = 5
REPEAT_BYTES = 256 * MIB
DISK_BYTES = 512 * MIB
READ_BYTES = 8 * MIB
TRIPS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFigures:
    """Bytes a second in one direction; ``hop_s`` is a small message's way to another process.

    ``restore`` is what dvrt's best transport moves when both ends check digests.
    """

    memcpy: float
    host_to_device: float
    device_to_host: float
    tcp: float
    shm: float
    restore: float
    disk: float
    hop_s: float


def measure_links(device: str, directory: Path) -> LinkFigures:
    """Between this process and one that it starts; the disk by reading the weights again."""
    source = Pool()
    source.scribble()
    case = next(each for each in CASES if each.name == "64MiB")
    memcpy = _rate(Memcpy(source, Pool()), case)
    to_device, to_host = _device_rates(device) if device.startswith("cuda") else (memcpy, memcpy)
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory("auto")))
        peer = stack.enter_context(open_peer(["tcp", "shm", "auto"]))
        channels = runner.run(_connect(peer.addresses))
        stack.callback(lambda: runner.run(_close(channels)))

        def rate(scheme: str, kind: Kind) -> float:
            side = ChannelSide(runner, channels[scheme], source, kind)
            side.ensure_right(case)
            return _rate(side, case)

        return LinkFigures(
            memcpy=memcpy,
            host_to_device=to_device,
            device_to_host=to_host,
            tcp=rate("tcp", Kind.INTO),
            shm=rate("shm", Kind.INTO),
            restore=rate("auto", Kind.INTO_DIGEST),
            disk=disk_rate(directory),
            hop_s=channel_trips(runner, channels["auto"], TRIPS),
        )


def _rate(side: Side, case: Case) -> float:
    count = case.count(REPEAT_BYTES)
    side(case, count)
    return statistics.median(case.nbytes * count / side(case, count) for _ in range(REPEATS))


async def _connect(addresses: dict[str, str]) -> dict[str, Any]:
    return {
        scheme: await connect(address, deadline_s=DEADLINE_S)
        for scheme, address in addresses.items()
    }


async def _close(channels: dict[str, Any]) -> None:
    for channel in channels.values():
        await channel.aclose()


def _device_rates(device: str) -> tuple[float, float]:
    """Copies from and to pinned memory."""
    import torch

    host = torch.ones(REPEAT_BYTES, dtype=torch.uint8).pin_memory()
    there = torch.empty_like(host, device=device)

    def rate(target: Any, origin: Any) -> float:
        taken = []
        for _ in range(REPEATS + 1):
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            target.copy_(origin, non_blocking=True)
            torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began)
        return REPEAT_BYTES / statistics.median(taken[1:])

    return rate(there, host), rate(host, there)


def disk_rate(directory: Path) -> float:
    """Reading the weights, after asking the system to forget them. Raises ModelError for none."""
    read, seconds = 0, 0.0
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            while read < DISK_BYTES and (data := stream.read(READ_BYTES)):
                read += len(data)
            seconds += time.perf_counter() - began
    if not read:
        raise ModelError(f"{directory}: no weights to read")
    return read / seconds
