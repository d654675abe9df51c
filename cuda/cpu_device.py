"""The CPU as a device: NumPy memory, a compute thread and a copy thread. Slow, but complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from dvrt.buffers import MemoryKind, Region
from dvrt.cuda.device import DeviceStatistics, ensure_same_size
from dvrt.cuda.fences import Fence, Timeline
from dvrt.cuda.lanes import Lane, ThreadLane
from dvrt.cuda.packing import move_blocks
from dvrt.errors import OutOfMemory
from dvrt.strided import StridedCopy

T = TypeVar("T")

INLINE_BYTES = 1 << 20
"""Copies up to this size are made at once on the caller's thread: a hand-over costs more."""


class CpuDevice:
    """Device and host memory are two arenas of the same machine; copies between them are real.

    ``memory_bytes`` limits device memory, ``link_bytes_per_s`` slows copies between the arenas
    down to that rate, so that the effect of a real link can be shown.
    """

    kind = MemoryKind.HOST

    def __init__(
        self,
        *,
        name: str = "cpu",
        memory_bytes: int | None = None,
        link_bytes_per_s: float | None = None,
    ) -> None:
        self.name = name
        self._limit = memory_bytes
        self._rate = link_bytes_per_s
        self._compute = self._open_lane(f"{name} compute")
        self._copies = self._open_lane(f"{name} copies")
        self._done = Timeline(f"{name} at once")
        self._device: dict[int, int] = {}
        self._host: dict[int, int] = {}
        self._n_copies = self._n_bytes = self._n_runs = 0

    def _open_lane(self, name: str) -> Lane:
        return ThreadLane(name)

    def __repr__(self) -> str:
        s = self.statistics()
        return f"<{type(self).__name__} {self.name} {s.device_bytes} bytes, {s.copies} copies>"

    def alloc(self, nbytes: int) -> Region:
        used = sum(self._device.values())
        if self._limit is not None and used + nbytes > self._limit:
            raise OutOfMemory(self.name, needed_bytes=nbytes, free_bytes=self._limit - used)
        region = _host_memory(nbytes)
        self._device[region.address] = nbytes
        return region

    def alloc_host(self, nbytes: int) -> Region:
        region = _host_memory(nbytes)
        self._host[region.address] = nbytes
        return region

    def free(self, region: Region) -> None:
        if self._device.pop(region.address, None) is None:
            self._host.pop(region.address, None)

    def copy_in(self, target: Region, source: Region, *, after: Sequence[Fence] = ()) -> Fence:
        ensure_same_size(target, source)
        return self._move(target, source, (), after, over_link=True)

    def copy_out(self, target: Region, source: Region, *, after: Sequence[Fence] = ()) -> Fence:
        ensure_same_size(target, source)
        return self._move(target, source, (), after, over_link=True)

    def copy_within(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        return self._move(target, source, blocks, after, over_link=False)

    def pack(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        return self._move(target, source, blocks, after, over_link=True)

    def unpack(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        return self._move(target, source, blocks, after, over_link=True)

    def fence(self) -> Fence:
        return self._compute.timeline.latest()

    def mark(self) -> Fence:
        return self._done.latest()

    async def run(
        self, compute: Callable[[], T], *, after: Sequence[Fence] = (), cost_s: float = 0.0
    ) -> T:
        results: list[T] = []
        fence = self._compute.submit(
            lambda: results.append(compute()), after=after, cost_s=self._compute_s(cost_s)
        )
        await fence.done()
        return results[0]

    def _compute_s(self, cost_s: float) -> float:
        return 0.0

    def _copy_s(self, nbytes: int, *, over_link: bool) -> float:
        return nbytes / self._rate if self._rate and over_link else 0.0

    def _move(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        after: Sequence[Fence],
        *,
        over_link: bool,
    ) -> Fence:
        """Copy the blocks, or the whole where there are none."""
        nbytes = sum(b.nbytes for b in blocks) if blocks else source.nbytes
        self._n_copies += 1
        self._n_bytes += nbytes
        self._n_runs += sum(b.n_runs for b in blocks) if blocks else 1
        into, out_of = target.view(), source.view()
        owners = [target, source]  # views do not keep their memory alive

        def work() -> None:
            try:
                if blocks:
                    move_blocks(into, out_of, blocks)
                else:
                    into[:] = out_of
            finally:
                owners.clear()  # the lane remembers its last work for long

        cost_s = self._copy_s(nbytes, over_link=over_link)
        if not cost_s and nbytes <= INLINE_BYTES and self._is_free(after):
            return self._at_once(work, after)
        return self._copies.submit(work, after=after, cost_s=cost_s)

    def _is_free(self, after: Sequence[Fence]) -> bool:
        return self._copies.timeline.is_idle and all(fence.is_done for fence in after)

    def _at_once(self, work: Callable[[], Any], after: Sequence[Fence]) -> Fence:
        for fence in after:
            fence.result()
        work()
        fence = self._done.issue()
        self._done.reach(fence)
        return fence

    def statistics(self) -> DeviceStatistics:
        return DeviceStatistics(
            device_bytes=sum(self._device.values()),
            host_bytes=sum(self._host.values()),
            copies=self._n_copies,
            copied_bytes=self._n_bytes,
            packed_runs=self._n_runs,
        )

    async def aclose(self) -> None:
        await asyncio.gather(self._compute.aclose(), self._copies.aclose())
        self._device.clear()
        self._host.clear()


def _host_memory(nbytes: int) -> Region:
    array = np.empty(max(nbytes, 1), np.uint8)
    return Region(int(array.ctypes.data), nbytes, MemoryKind.HOST, array)
