"""Half-open intervals of layers, heads and tokens, and the ways to cut a whole into them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from dvrt.wire import message


@message("kv.span")
class Span:
    """The integers of ``[start, stop)``. Raises ValueError when it would be negative."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"[{self.start}, {self.stop}) is no interval")

    @classmethod
    def of(cls, start: int, stop: int) -> Span:
        return cls(start=start, stop=stop)

    @property
    def size(self) -> int:
        return self.stop - self.start

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.stop

    def __repr__(self) -> str:
        return f"[{self.start}, {self.stop})"

    def covers(self, other: Span) -> bool:
        return self.start <= other.start and other.stop <= self.stop

    def overlap(self, other: Span) -> Span | None:
        """What both hold; None when that is nothing."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Span(start=start, stop=stop) if start < stop else None

    def seen_from(self, origin: int) -> Span:
        """The same interval in coordinates that begin at ``origin``."""
        return Span(start=self.start - origin, stop=self.stop - origin)


def split_evenly(total: int, parts: int) -> tuple[Span, ...]:
    """``parts`` neighbours that cover ``total``; the first ``total % parts`` get one more."""
    _ensure_parts(total, parts)
    small, larger = divmod(total, parts)
    return _neighbours([small + 1] * larger + [small] * (parts - larger))


def split_remainder_last(total: int, parts: int) -> tuple[Span, ...]:
    """``parts`` neighbours of ``total // parts``; the last takes the remainder as well (paper)."""
    _ensure_parts(total, parts)
    small, rest = divmod(total, parts)
    return _neighbours([small] * (parts - 1) + [small + rest])


def ensure_partition(spans: tuple[Span, ...], what: str) -> int:
    """The total that ``spans`` cover, in order and once. Raises ValueError if they do not."""
    edge = 0
    for span in spans:
        if span.start != edge:
            raise ValueError(f"{what} {list(spans)}: expected {edge} where {span} starts")
        edge = span.stop
    return edge


def cut(span: Span, edges: Iterable[int]) -> tuple[Span, ...]:
    """``span`` cut at every edge that lies inside it."""
    inside = sorted({edge for edge in edges if span.start < edge < span.stop})
    bounds = [span.start, *inside, span.stop]
    return tuple([Span.of(a, b) for a, b in itertools.pairwise(bounds)])


def _ensure_parts(total: int, parts: int) -> None:
    if not 1 <= parts <= total:
        raise ValueError(f"cannot cut {total} into {parts} parts that hold something")


def _neighbours(sizes: list[int]) -> tuple[Span, ...]:
    spans, edge = [], 0
    for size in sizes:
        spans.append(Span.of(edge, edge + size))
        edge += size
    return tuple(spans)
