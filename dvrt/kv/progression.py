"""Lists of offset pairs as few arithmetic progressions. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """``size`` neighbours along one axis that both sides step through evenly."""

    source: int
    target: int
    size: int


class Progression(NamedTuple):
    """``repeats`` segments of ``size``, each a step further on both sides."""

    source: int
    target: int
    size: int
    repeats: int
    source_step: int
    target_step: int


class Blocked(NamedTuple):
    """An axis cut into blocks: index i lies at (i // block) * outer + (i % block) * inner."""

    start: int
    block: int
    outer: int
    inner: int

    def place(self, index: int) -> int:
        block, step = divmod(self.start + index, self.block)
        return block * self.outer + step * self.inner

    def left_in_block(self, index: int) -> int:
        return self.block - (self.start + index) % self.block


def segments(size: int, source: Blocked, target: Blocked) -> Iterator[Segment]:
    """``size`` indices cut where either side's block ends."""
    index = 0
    while index < size:
        count = min(size - index, source.left_in_block(index), target.left_in_block(index))
        yield Segment(source.place(index), target.place(index), count)
        index += count


def progressions(parts: Sequence[Segment]) -> list[Progression]:
    """The segments, greedily joined while their lengths and steps stay equal."""
    out: list[Progression] = []
    for part in parts:
        if out and (longer := _extended(out[-1], part)):
            out[-1] = longer
        else:
            out.append(Progression(part.source, part.target, part.size, 1, 0, 0))
    return out


def _extended(last: Progression, part: Segment) -> Progression | None:
    if part.size != last.size:
        return None
    if last.repeats == 1:
        source_step, target_step = part.source - last.source, part.target - last.target
        if source_step <= 0 or target_step <= 0:
            return None
        return last._replace(repeats=2, source_step=source_step, target_step=target_step)
    follows = (
        part.source == last.source + last.repeats * last.source_step
        and part.target == last.target + last.repeats * last.target_step
    )
    return last._replace(repeats=last.repeats + 1) if follows else None
