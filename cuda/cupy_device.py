"""A CUDA device by CuPy: copy streams of their own for each direction, pinned memory, one kernel.

CuPy's errors are mapped here. Packing writes straight into pinned host memory: one launch moves
any number of runs over the link, in the widest units that their addresses allow.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dvrt.buffers import MemoryKind, Region
from dvrt.cuda.device import DeviceStatistics, ensure_same_size
from dvrt.cuda.fences import Fence
from dvrt.cuda.lanes import ThreadLane
from dvrt.cuda.packing import Tiles, kernel_names, kernel_source, tiles
from dvrt.cuda.streams import StreamLane
from dvrt.errors import ConfigError, OutOfMemory
from dvrt.strided import StridedCopy, pair_runs

T = TypeVar("T")

_KERNELS = kernel_source()
_PORTABLE = 1
"""cudaHostAllocPortable: pinned for every device."""
THREADS = 256
BLOCKS_PER_PROCESSOR = 4
MAX_TABLE_BYTES = 64 << 20
"""Run tables of prepared copies that stay on the device, all together; the newest stays anyway."""


_Key = tuple[tuple[StridedCopy, ...], int, int]
"""Blocks, and how their addresses are aligned."""


class _Table(NamedTuple):
    """Runs on the device, and the event after which they are there."""

    tiles: Tiles
    source: Any
    target: Any
    units: Any
    ready: Any

    @property
    def nbytes(self) -> int:
        return int(self.source.nbytes + self.target.nbytes + self.units.nbytes)


def _import_cupy() -> Any:
    try:
        return import_module("cupy")
    except ImportError as error:
        need = "pip install 'dvrt[cuda12]', or 'dvrt[cuda13]'"
        raise ConfigError(f"device cuda: CuPy is not installed; {need}") from error


class CupyDevice:
    """``compute_stream`` is the stream that compute launches on; 0, torch's default, by default."""

    kind = MemoryKind.CUDA

    def __init__(
        self,
        ordinal: int = 0,
        *,
        memory_bytes: int | None = None,
        compute_stream: int = 0,
        cupy: Any = None,
    ) -> None:
        self.name = f"cuda:{ordinal}"
        self._cupy = cupy or _import_cupy()
        self._limit = memory_bytes
        try:
            self._device = self._cupy.cuda.Device(ordinal)
            self._processors = int(self._device.attributes["MultiProcessorCount"])
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise ConfigError(f"device {self.name}: {error}") from error
        self._compute = ThreadLane(f"{self.name} compute")
        self._marks = self._lane("marks", self._cupy.cuda.ExternalStream(compute_stream, ordinal))
        self._in, self._out, self._within = (
            self._lane(name, self._new_stream()) for name in ("in", "out", "within")
        )
        self._kernels: dict[str, Any] = {}
        self._compiled = self._compute.submit(self._compile)
        self._tables_lock = threading.Lock()
        self._tables: OrderedDict[Any, _Table] = OrderedDict()
        self._table_bytes = 0
        self._owned: dict[int, Region] = {}
        self._n_copies = self._n_bytes = self._n_runs = 0

    def _new_stream(self) -> Any:
        with self._device:
            return self._cupy.cuda.Stream(non_blocking=True)

    def _lane(self, name: str, stream: Any) -> StreamLane:
        return StreamLane(
            f"{self.name} {name}", cupy=self._cupy, device=self._device, stream=stream
        )

    def __repr__(self) -> str:
        s = self.statistics()
        return f"<CupyDevice {self.name} {s.device_bytes} bytes, {s.copies} copies>"

    def alloc(self, nbytes: int) -> Region:
        used = self._held(MemoryKind.CUDA)
        if self._limit is not None and used + nbytes > self._limit:
            raise OutOfMemory(self.name, needed_bytes=nbytes, free_bytes=self._limit - used)
        try:
            with self._device:  # not of CuPy's pools, which round up and give nothing back
                memory = self._cupy.cuda.MemoryPointer(self._cupy.cuda.Memory(max(nbytes, 1)), 0)
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            free_bytes = int(self._device.mem_info[0])
            raise OutOfMemory(self.name, needed_bytes=nbytes, free_bytes=free_bytes) from error
        return self._own(Region(int(memory.ptr), nbytes, MemoryKind.CUDA, memory))

    def alloc_host(self, nbytes: int) -> Region:
        try:
            with self._device:
                pinned = self._cupy.cuda.PinnedMemory(max(nbytes, 1), _PORTABLE)
                memory = self._cupy.cuda.PinnedMemoryPointer(pinned, 0)
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            pool = f"{self.name} pinned memory"
            raise OutOfMemory(pool, needed_bytes=nbytes, free_bytes=0) from error
        return self._own(Region(int(memory.ptr), nbytes, MemoryKind.PINNED, memory))

    def _own(self, region: Region) -> Region:
        self._owned[region.address] = region
        return region

    def free(self, region: Region) -> None:
        self._owned.pop(region.address, None)

    def _held(self, kind: MemoryKind) -> int:
        return sum(region.nbytes for region in self._owned.values() if region.kind is kind)

    def copy_in(self, target: Region, source: Region, *, after: Sequence[Fence] = ()) -> Fence:
        return self._copy(self._in, target, source, after)

    def copy_out(self, target: Region, source: Region, *, after: Sequence[Fence] = ()) -> Fence:
        return self._copy(self._out, target, source, after)

    def _copy(
        self, lane: StreamLane, target: Region, source: Region, after: Sequence[Fence]
    ) -> Fence:
        ensure_same_size(target, source)
        self._count(source.nbytes, 1)
        runtime = self._cupy.cuda.runtime

        def enqueue() -> tuple[Any, ...]:
            stream = self._cupy.cuda.get_current_stream()
            address, kept = _readable(source)
            runtime.memcpyAsync(
                target.address, address, source.nbytes, runtime.memcpyDefault, stream.ptr
            )
            return target, source, kept

        # CUDA may wait for the whole copy, and for what is before it, where memory is pageable.
        is_pageable = MemoryKind.HOST in (target.kind, source.kind)
        return lane.submit(enqueue, after=after, may_block=is_pageable)

    def copy_within(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        return self._move(self._within, target, source, blocks, after)

    def pack(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        _ensure_pinned(target)
        return self._move(self._out, target, source, blocks, after)

    def unpack(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        _ensure_pinned(source)
        return self._move(self._in, target, source, blocks, after)

    def _move(
        self,
        lane: StreamLane,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        after: Sequence[Fence],
    ) -> Fence:
        if not blocks:
            return lane.submit(lambda: None, after=after)
        _ensure_inside(target, source, blocks)
        self._count(sum(b.nbytes for b in blocks), sum(b.n_runs for b in blocks))
        base = blocks[0]
        moved = tuple(
            [b.shifted(source=-base.source_offset, target=-base.target_offset) for b in blocks]
        )
        source_address = source.address + base.source_offset
        target_address = target.address + base.target_offset
        key = (moved, source_address % 16, target_address % 16)
        return lane.submit(
            lambda: (self._launch(key, source_address, target_address), target, source),
            after=(*after, self._compiled),
            may_block=key not in self._tables,  # many runs take long to be written down
        )

    def _launch(self, key: _Key, source_address: int, target_address: int) -> _Table:
        """Put the kernel on the current stream; what it needs must live until it is done."""
        table = self._table(key, source_address, target_address)
        self._cupy.cuda.get_current_stream().wait_event(table.ready)
        n_runs = int(table.tiles.units.size)
        rest: tuple[Any, ...] = (table.units, np.int64(n_runs))
        work = n_runs * 32
        if table.tiles.kernel.startswith("move_short"):
            run_units = int(table.tiles.units[0])
            work, rest = n_runs * run_units, (np.uint32(n_runs), np.uint32(run_units))
        grid = min(-(-work // THREADS), self._processors * BLOCKS_PER_PROCESSOR)
        addresses = (np.uint64(source_address), np.uint64(target_address))
        arguments = (*addresses, table.source, table.target, *rest)
        self._kernels[table.tiles.kernel]((grid,), (THREADS,), arguments)
        return table

    def _table(self, key: _Key, source_address: int, target_address: int) -> _Table:
        """The table of these blocks on the device; its ``ready`` event was recorded."""
        with self._tables_lock:
            if key in self._tables:
                self._tables.move_to_end(key)
                return self._tables[key]
            made = tiles(
                pair_runs(key[0]), source_address=source_address, target_address=target_address
            )
            source, target, units = (
                self._cupy.asarray(column) for column in (made.source, made.target, made.units)
            )
            ready = self._cupy.cuda.Event(block=True, disable_timing=True)
            ready.record(self._cupy.cuda.get_current_stream())
            table = self._tables[key] = _Table(made, source, target, units, ready)
            self._table_bytes += table.nbytes
            while self._table_bytes > MAX_TABLE_BYTES and len(self._tables) > 1:
                self._table_bytes -= self._tables.popitem(last=False)[1].nbytes
            return table

    def _compile(self) -> None:
        with self._device:
            module = self._cupy.RawModule(code=_KERNELS, options=("--std=c++17",))
            for name in kernel_names():
                self._kernels[name] = module.get_function(name)

    def _count(self, nbytes: int, runs: int) -> None:
        self._n_copies += 1
        self._n_bytes += nbytes
        self._n_runs += runs

    def fence(self) -> Fence:
        return self._compute.timeline.latest()

    def mark(self) -> Fence:
        return self._marks.mark()

    async def run(
        self, compute: Callable[[], T], *, after: Sequence[Fence] = (), cost_s: float = 0.0
    ) -> T:
        results: list[T] = []

        def work() -> None:
            try:
                with self._device:
                    results.append(compute())
            finally:  # one that fails may have launched something before
                self.mark().wait()

        await self._compute.submit(work, after=after).done()
        return results[0]

    def statistics(self) -> DeviceStatistics:
        return DeviceStatistics(
            device_bytes=self._held(MemoryKind.CUDA),
            host_bytes=self._held(MemoryKind.PINNED),
            copies=self._n_copies,
            copied_bytes=self._n_bytes,
            packed_runs=self._n_runs,
        )

    async def aclose(self) -> None:
        await self._compute.aclose()
        lanes = (self._marks, self._in, self._out, self._within)
        await asyncio.gather(*(lane.aclose() for lane in lanes))
        self._tables.clear()
        self._owned.clear()


def _readable(region: Region) -> tuple[int, object]:
    """Where its bytes are, and what keeps them there; regions of read-only memory do not know."""
    if region.address or not region.nbytes:
        return region.address, None
    array = np.frombuffer(region.view(), np.uint8)
    return array.ctypes.data, array


def _ensure_pinned(region: Region) -> None:
    if region.kind is not MemoryKind.PINNED:
        raise TypeError("a GPU packs into pinned memory only; lease it from a staging pool")


def _ensure_inside(target: Region, source: Region, blocks: Sequence[StridedCopy]) -> None:
    """The kernel checks nothing, so that must be done here."""
    for block in blocks:
        for region, (start, stop) in ((source, block.source_extent), (target, block.target_extent)):
            if start < 0 or stop > region.nbytes:
                raise ValueError(f"{block} lies outside a region of {region.nbytes} bytes")
