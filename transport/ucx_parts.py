"""How regions travel over UCX: large ones as they are, neighbours among the small ones together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dvrt.buffers import Region
from dvrt.transport.packing import Pieces

DIRECT_BYTES = 32 << 10
"""Regions from this size on are sent from, and received into, where they are."""
PACK_BYTES = 4 << 20
"""Smaller ones are packed into so much at most."""


class Span(NamedTuple):
    """Regions ``[first, stop)`` of a message, which travel as one piece of ``nbytes``."""

    first: int
    stop: int
    nbytes: int


def split(sizes: Sequence[int]) -> list[Span]:
    """The pieces of a message, the same on both sides; none is empty. Pure."""
    return [span for span in _spans(sizes) if span.nbytes]


def _spans(sizes: Sequence[int]) -> Iterator[Span]:
    first = packed = 0
    for index, size in enumerate(sizes):
        if size >= DIRECT_BYTES or packed + size > PACK_BYTES:
            yield Span(first, index, packed)
            first, packed = index, 0
        packed += size
        if size >= DIRECT_BYTES:
            yield Span(index, index + 1, size)
            first, packed = index + 1, 0
    yield Span(first, len(sizes), packed)


class Parts:
    """The memory of each piece: a region itself, or staging for several."""

    def __init__(self, regions: Sequence[Region], sizes: Sequence[int]) -> None:
        self._regions, self._sizes = regions, sizes
        self._spans = split(sizes)
        self.memory = [self._memory_of(span) for span in self._spans]

    def _memory_of(self, span: Span) -> Region:
        if span.stop == span.first + 1:
            return self._regions[span.first]
        return Region.of(np.empty(span.nbytes, np.uint8))

    def _staged(self) -> Iterator[tuple[Pieces, Region]]:
        for span, memory in zip(self._spans, self.memory, strict=True):
            if span.stop > span.first + 1:
                regions = self._regions[span.first : span.stop]
                yield Pieces(regions, self._sizes[span.first : span.stop]), memory

    def gather(self) -> None:
        """Fill the staging, before it is sent."""
        for pieces, memory in self._staged():
            pieces.copy_to(memory.view())

    def scatter(self) -> None:
        """Spread the staging, after it was received."""
        for pieces, memory in self._staged():
            pieces.copy_from(memory.view())
