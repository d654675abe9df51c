"""The device contract: memory, copies in order, and compute that never runs on the event loop.

    compute   one timeline: what ``run`` was given, in order
    copies    a timeline for each direction: in (host to device), out, and within

Work of one timeline happens in the order of the calls; work of different timelines only in the
order that ``after`` demands. Nothing here blocks, and nothing is copied by the processor of a
device that has copy engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from dvrt.buffers import MemoryKind, Region
from dvrt.cuda.fences import Fence
from dvrt.errors import ConfigError
from dvrt.strided import StridedCopy

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatistics:
    """Memory held now, and what was copied since the start; runs are contiguous pieces."""

    device_bytes: int = 0
    host_bytes: int = 0
    copies: int = 0
    copied_bytes: int = 0
    packed_runs: int = 0


class Device(Protocol):
    """One device of this process.

    A region that takes part in a copy belongs to the copy until its fence is done, whatever
    becomes of the caller. ``after`` takes fences of this device. Sizes that do not match and
    blocks outside their regions raise ValueError from the call or from the fence.
    """

    name: str
    kind: MemoryKind

    def alloc(self, nbytes: int) -> Region:
        """Device memory, its content undefined. Raises OutOfMemory."""
        ...

    def alloc_host(self, nbytes: int) -> Region:
        """Host memory that copies are fastest with: pinned where there is a GPU."""
        ...

    def free(self, region: Region) -> None:
        """Give back what ``alloc`` or ``alloc_host`` returned; no copy may be using it."""
        ...

    def copy_in(self, target: Region, source: Region, *, after: Sequence[Fence] = ()) -> Fence:
        """Host to device, as many bytes as both have."""
        ...

    def copy_out(self, target: Region, source: Region, *, after: Sequence[Fence] = ()) -> Fence:
        """Device to host."""
        ...

    def copy_within(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        """Device to device, block by block."""
        ...

    def pack(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        """Gather blocks of device memory into host memory, as one move over the link."""
        ...

    def unpack(
        self,
        target: Region,
        source: Region,
        blocks: Sequence[StridedCopy],
        *,
        after: Sequence[Fence] = (),
    ) -> Fence:
        """Scatter host memory into blocks of device memory, as one move over the link."""
        ...

    def fence(self) -> Fence:
        """Done when all compute given to ``run`` so far is done."""
        ...

    def mark(self) -> Fence:
        """Called by ``compute`` itself: done when what it launched so far is done."""
        ...

    async def run(
        self, compute: Callable[[], T], *, after: Sequence[Fence] = (), cost_s: float = 0.0
    ) -> T:
        """What ``compute`` returns, once it and all it launched on the device are done.

        It runs on the compute timeline; a device that only imitates takes ``cost_s`` for it.
        Cancelling ends the waiting, not the compute.
        """
        ...

    def statistics(self) -> DeviceStatistics: ...

    async def aclose(self) -> None:
        """Wait for what has begun, fail the rest, free everything. Twice is harmless."""
        ...


def open_device(name: str) -> Device:
    """The device called ``cpu``, ``null`` or ``cuda:N``; needs a running event loop.

    Raises ConfigError for an unknown name, or where CUDA or CuPy is not there.
    """
    if name == "cpu":
        from dvrt.cuda.cpu_device import CpuDevice

        return CpuDevice()
    if name == "null":
        from dvrt.cuda.null_device import NullDevice

        return NullDevice()
    kind, _, ordinal = name.partition(":")
    if kind == "cuda" and (ordinal or "0").isdecimal():
        from dvrt.cuda.cupy_device import CupyDevice

        return CupyDevice(int(ordinal or "0"))
    raise ConfigError(f"device {name!r} is unknown; known: cpu, null, cuda:N")


def ensure_same_size(target: Region, source: Region) -> None:
    if target.nbytes != source.nbytes:
        raise ValueError(f"a copy of {source.nbytes} bytes into {target.nbytes}")
