"""What ``bench transfer`` moves: contiguous messages, scattered token steps, and a prompt.

Each side sends from, and where it copies receives into, a pool of the same shape, so that all of
them find the same bytes at the same distances.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dvrt.buffers import Region

POOL_BYTES = 256 << 20
IN_FLIGHT = 4
KIB, MIB = 1 << 10, 1 << 20
_LINE_BYTES = 64


@dataclass(frozen=True)
class Case:
    """One transfer: ``chunks`` pieces of ``chunk_bytes``, far from each other when scattered.

    Transfers in flight have bytes of their own as far as the pool goes; a token step is always the
    same one, which is in the cache like one that was just computed.
    """

    name: str
    chunks: int
    chunk_bytes: int
    is_step: bool = False

    @property
    def nbytes(self) -> int:
        return self.chunks * self.chunk_bytes

    @property
    def slots(self) -> int:
        """How many transfers have bytes of their own."""
        footprint = self.nbytes if self.chunks == 1 else 2 * self.nbytes
        return 1 if self.is_step else max(1, min(IN_FLIGHT, POOL_BYTES // footprint))

    @property
    def slot_bytes(self) -> int:
        return POOL_BYTES // self.slots if self.chunks > 1 else self.nbytes

    @property
    def stride(self) -> int:
        return self.slot_bytes // self.chunks // _LINE_BYTES * _LINE_BYTES

    def offsets(self, slot: int) -> list[int]:
        """Where the chunks of a slot begin."""
        start = slot * self.slot_bytes
        return list(range(start, start + self.chunks * self.stride, self.stride))

    def count(self, repeat_bytes: int) -> int:
        """How many transfers make a repeat."""
        return max(2 * IN_FLIGHT, min(1024, repeat_bytes // self.nbytes))


CASES = (
    Case("64KiB", 1, 64 * KIB),
    Case("256KiB", 1, 256 * KIB),
    Case("1MiB", 1, MIB),
    Case("8MiB", 1, 8 * MIB),
    Case("64MiB", 1, 64 * MIB),
    Case("256MiB", 1, 256 * MIB),
    Case("scatter_1.5KiB", 768, 1536, is_step=True),
    Case("scatter_8KiB", 640, 8 * KIB, is_step=True),
    Case("prompt_128KiB", 512, 128 * KIB),
)


class Pool:
    """Memory whose pages are there already, and the regions of the cases in it."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, POOL_BYTES)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        self.array = np.frombuffer(self._map, dtype=np.uint8)
        self.array[:] = 1
        self._regions: dict[tuple[str, int], tuple[Region, ...]] = {}

    def scribble(self) -> None:
        """Fill it with bytes of which no two chunks have the same."""
        words = self.array.view(np.uint64)
        words[:] = np.arange(len(words), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def regions(self, case: Case, slot: int) -> tuple[Region, ...]:
        """The chunks of a slot, made once."""
        key = (case.name, slot)
        if key not in self._regions:
            views = [self.array[at : at + case.chunk_bytes] for at in case.offsets(slot)]
            self._regions[key] = tuple(Region.of(view) for view in views)
        return self._regions[key]

    def views(self, case: Case, slot: int) -> Sequence[memoryview]:
        return [region.view() for region in self.regions(case, slot)]

    def strided(self, case: Case, slot: int) -> np.ndarray:
        """The chunks of a slot as rows of one array."""
        start = slot * case.slot_bytes
        rows = self.array[start : start + case.chunks * case.stride]
        return rows.reshape(case.chunks, case.stride)[:, : case.chunk_bytes]
