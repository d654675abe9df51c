"""Copying between many buffers and one, in as few steps as there is reason for."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from dvrt.buffers import Region
from dvrt.transport.copying import copy, copy_past_caches
from dvrt.transport.vector import Vector

Copy = Callable[[memoryview, memoryview], None]

JOIN_BELOW_BYTES = 4 << 10
"""Buffers that are smaller on average are joined first: one step in C instead of one each."""
MIN_ROWS = 16
MAX_ROW_BYTES = 64 << 10
"""So many regions, and no larger ones, are asked whether they lie in equal distances."""
STREAMED_BYTES = 8 << 20
STREAMED_REGION_BYTES = 64 << 10
"""So much at once, in regions of so much on average, is written past the caches. It was faster from
there on, also where a digest is taken behind it; half as much was slower."""


def views_of(regions: Iterable[Region]) -> list[memoryview]:
    """The bytes of each region; most know their view already, which is worth not asking for."""
    return [
        region.owner if type(region.owner) is memoryview else region.view() for region in regions
    ]


class Pieces:
    """Regions that are copied front to back, piece by piece; ``nbytes`` of them are left.

    Small regions of one size in equal distances, as those of a token step usually are, are one
    strided array; a copy of many of them is then a single step in C.
    """

    def __init__(self, regions: Sequence[Region], sizes: Sequence[int]) -> None:
        self.nbytes = sum(sizes)
        is_streamed = self.nbytes >= max(STREAMED_BYTES, STREAMED_REGION_BYTES * len(sizes))
        self._copy = copy_past_caches if is_streamed else copy
        self._regions = regions
        self._rows = _as_rows(regions, sizes)
        self._vector = Vector(views_of(regions)) if self._rows is None else None

    def size(self, at_most: int) -> int:
        """The size of the next piece, of whole regions where they are small."""
        if self._rows is None or self.nbytes <= at_most:
            return min(self.nbytes, at_most)
        return at_most // self._rows.shape[1] * self._rows.shape[1] or at_most

    def copy_to(self, target: memoryview) -> None:
        """The next piece fills ``target``."""
        rows = self._take(target.nbytes)
        if rows is None:
            gather(self._cut(target.nbytes), target, self._copy)
        else:
            np.copyto(np.frombuffer(target, np.uint8).reshape(rows.shape), rows)

    def copy_from(self, source: memoryview) -> None:
        """``source`` fills the next piece."""
        rows = self._take(source.nbytes)
        if rows is None:
            scatter(source, self._cut(source.nbytes), self._copy)
        else:
            np.copyto(rows, np.frombuffer(source, np.uint8).reshape(rows.shape))

    def _take(self, nbytes: int) -> np.ndarray | None:
        """The next rows, or None when ``nbytes`` are not whole rows or there are none."""
        rows = self._rows
        if rows is None or nbytes % rows.shape[1]:
            return None
        count = nbytes // rows.shape[1]
        self.nbytes -= nbytes
        self._rows = rows[count:]
        return rows[:count]

    def _cut(self, nbytes: int) -> list[memoryview]:
        """The next views; from here on there are no rows."""
        if self._rows is not None:
            left = self._regions[len(self._regions) - len(self._rows) :]
            self._rows, self._vector = None, Vector(views_of(left))
        if self._vector is None:
            raise ValueError("no regions are left")
        self.nbytes -= nbytes
        return self._vector.take(nbytes)


def _as_rows(regions: Sequence[Region], sizes: Sequence[int]) -> np.ndarray | None:
    """Regions of one size in equal distances as one array, or None for any others."""
    count = len(sizes)
    if count < MIN_ROWS or sizes[0] > MAX_ROW_BYTES or sizes.count(sizes[0]) != count:
        return None
    addresses = [region.address for region in regions]
    first, step = addresses[0], addresses[1] - addresses[0]
    if (
        not first
        or not 0 < sizes[0] <= step
        or addresses != list(range(first, first + count * step, step))
    ):
        return None
    span = (ctypes.c_char * ((count - 1) * step + sizes[0])).from_address(first)
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(memoryview(span), np.uint8), (count, sizes[0]), (step, 1)
    )


def pack(regions: Sequence[Region], sizes: Sequence[int], target: memoryview) -> None:
    """Fill ``target`` with all the regions, whose sizes add up to its own."""
    if len(sizes) == 1 and target.nbytes < STREAMED_BYTES:
        copy(views_of(regions)[0], target)
    else:
        Pieces(regions, sizes).copy_to(target)


def unpack(source: memoryview, regions: Sequence[Region], sizes: Sequence[int]) -> None:
    """``source`` fills all the regions, whose sizes add up to its own."""
    if len(sizes) == 1 and 0 < source.nbytes < STREAMED_BYTES:
        copy(source, views_of(regions)[0])
    else:
        Pieces(regions, sizes).copy_from(source)


def gather(sources: Sequence[memoryview], target: memoryview, copy: Copy) -> None:
    """Fill ``target`` with the sources, whose sizes add up to its own."""
    if target.nbytes < len(sources) * JOIN_BELOW_BYTES:
        target[:] = b"".join(sources)
        return
    start = 0
    for source in sources:
        end = start + source.nbytes
        copy(source, target[start:end])
        start = end


def scatter(source: memoryview, targets: Sequence[memoryview], copy: Copy) -> None:
    """Spread ``source`` over the targets, whose sizes add up to its own."""
    start = 0
    for target in targets:
        end = start + target.nbytes
        copy(source[start:end], target)
        start = end


class Parts(Sequence[memoryview]):
    """Consecutive parts of ``source``, each a view that is made when it is asked for."""

    def __init__(self, source: memoryview, sizes: Sequence[int]) -> None:
        self._source, self._sizes = source, sizes
        self._starts: list[int] | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[memoryview]: ...
    def __getitem__(self, index: int | slice) -> memoryview | Sequence[memoryview]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._starts is None:
            self._starts = list(itertools.accumulate(self._sizes, initial=0))
        start = self._starts[range(len(self))[index]]
        return self._source[start : start + self._sizes[index]]

    def __iter__(self) -> Iterator[memoryview]:
        start = 0
        for size in self._sizes:
            end = start + size
            yield self._source[start:end]
            start = end
