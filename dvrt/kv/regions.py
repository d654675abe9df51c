"""Boxes of a KV cache, the contiguous runs that they are, and copies from box to box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from dvrt.kv.layout import BOTH_PARTS, Layout, Part
from dvrt.kv.progression import Blocked, Progression, Segment, progressions, segments
from dvrt.kv.spans import Span
from dvrt.strided import Offsets, StridedCopy, coalesce, fold, pair_runs

Table = Sequence[Sequence[int]]
"""For each row of a paged layout, the page of each of its blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Layers × parts × rows × heads × tokens of a cache; ``rows`` in any order, each once."""

    layers: Span
    rows: tuple[int, ...]
    heads: Span
    tokens: Span
    parts: tuple[Part, ...] = BOTH_PARTS

    @classmethod
    def whole(cls, layout: Layout) -> Box:
        return cls(
            layers=Span.of(0, layout.layers),
            rows=tuple(range(layout.rows)),
            heads=Span.of(0, layout.heads),
            tokens=Span.of(0, layout.tokens),
        )

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(layers, parts, rows, heads, tokens)."""
        sizes = (self.layers.size, len(self.parts), len(self.rows))
        return (*sizes, self.heads.size, self.tokens.size)

    def nbytes(self, layout: Layout) -> int:
        layers, parts, rows, heads, tokens = self.shape
        return layers * parts * rows * heads * tokens * layout.dim * layout.item_bytes


def ensure_inside(layout: Layout, box: Box, table: Table | None) -> None:
    """Raise ValueError naming the first thing of ``box`` that the layout does not have."""
    for name, span, limit in (
        ("layers", box.layers, layout.layers),
        ("heads", box.heads, layout.heads),
        ("tokens", box.tokens, layout.tokens),
    ):
        if span.stop > limit:
            raise ValueError(f"{name} {span} of a layout with {limit}")
    if len(set(box.rows)) != len(box.rows) or any(not 0 <= r < layout.rows for r in box.rows):
        raise ValueError(f"rows {box.rows} of a layout with {layout.rows}")
    if len(set(box.parts)) != len(box.parts):
        raise ValueError(f"parts {box.parts} name one twice")
    if layout.is_paged and box.tokens.size:
        _ensure_pages(layout, box, table)


def _ensure_pages(layout: Layout, box: Box, table: Table | None) -> None:
    if table is None:
        raise ValueError("a paged layout needs the table of its rows' pages")
    needed = -(-box.tokens.stop // layout.block_tokens)
    for row in box.rows:
        pages = table[row] if row < len(table) else ()
        if len(pages) < needed:
            raise ValueError(f"row {row} has {len(pages)} pages, {needed} needed for {box.tokens}")
        if any(not 0 <= page < layout.pages for page in pages[:needed]):
            raise ValueError(f"row {row} has a page outside the pool of {layout.pages}")


def runs(layout: Layout, box: Box, table: Table | None = None) -> tuple[Offsets, Offsets]:
    """Offsets and sizes of the fewest contiguous runs that are exactly this box, by offset."""
    pairs = pair_runs(copies(layout, box, layout, box, table, table))
    return coalesce(pairs.source, pairs.nbytes)


def copies(
    source: Layout,
    source_box: Box,
    target: Layout,
    target_box: Box,
    source_table: Table | None = None,
    target_table: Table | None = None,
) -> tuple[StridedCopy, ...]:
    """How each element of one box gets to the same place of the other.

    The boxes have one shape; parts, rows and tokens correspond in their order. Raises ValueError
    for boxes that differ in shape, lie outside their layouts, or whose elements differ in size.
    """
    ensure_inside(source, source_box, source_table)
    ensure_inside(target, target_box, target_table)
    if source_box.shape != target_box.shape:
        raise ValueError(f"a box of {source_box.shape} into one of {target_box.shape}")
    for name in ("dim", "item_bytes"):
        if (mine := getattr(source, name)) != (theirs := getattr(target, name)):
            raise ValueError(f"{name} differs: {mine} here, {theirs} there")
    if 0 in source_box.shape:
        return ()
    sides = (_Side(source, source_box, source_table), _Side(target, target_box, target_table))
    found: list[StridedCopy] = []
    for parts in _joint_parts(*sides):
        found.extend(_part_copies(*sides, parts))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Side:
    layout: Layout
    box: Box
    table: Table | None

    def strides(self, index: int) -> dict[str, int]:
        return dict(self.layout.strides(self.box.parts[index]).by_axis)

    def base(self, index: int) -> int:
        base, by_axis = self.layout.strides(self.box.parts[index])
        return base + self.box.layers.start * by_axis["L"] + self.box.heads.start * by_axis["H"]

    def tokens(self, index: int, row: int | None) -> Blocked:
        """The token axis; of one row where its pages scatter it."""
        by_axis = self.strides(index)
        if "N" not in by_axis:
            return Blocked(self.box.tokens.start, self.layout.tokens, 0, by_axis["T"])
        outer = 0 if row is not None and self.layout.is_paged else by_axis["N"]
        return Blocked(self.box.tokens.start, self.layout.block_tokens, outer, by_axis["T"])

    def row(self, index: int, row: int) -> int:
        return row * self.strides(index)["B"] if not self.layout.is_paged else 0

    def page(self, index: int, row: int, step: int) -> int:
        """What the page of a row's ``step``-th token adds; 0 where rows are not paged."""
        if not self.layout.is_paged or self.table is None:
            return 0
        block = (self.box.tokens.start + step) // self.layout.block_tokens
        return self.table[row][block] * self.strides(index)["N"]

    def dims(self, index: int) -> Blocked:
        by_axis, dim = self.strides(index), self.layout.dim
        if "X" not in by_axis:
            return Blocked(0, dim, 0, by_axis["D"])
        return Blocked(0, self.layout.lanes, by_axis["D"], by_axis["X"])


def _joint_parts(source: _Side, target: _Side) -> list[tuple[int, ...]]:
    """Keys and values together where both sides stride through them alike."""
    if len(source.box.parts) == 1:
        return [(0,)]
    is_even = all(side.strides(0) == side.strides(1) for side in (source, target))
    is_rising = all(side.base(0) < side.base(1) for side in (source, target))
    return [(0, 1)] if is_even and is_rising else [(0,), (1,)]


def _part_copies(source: _Side, target: _Side, parts: tuple[int, ...]) -> Iterator[StridedCopy]:
    first = parts[0]
    dims = progressions(list(segments(source.layout.dim, source.dims(first), target.dims(first))))
    for (row, token), dim in product(_rows_and_tokens(source, target, first), dims):
        shape, sources, targets = [], [], []
        for count, a, b in (
            *_outer_axes(source, target, parts),
            (row.repeats, row.source_step, row.target_step),
            (token.repeats, token.source_step, token.target_step),
            (token.size, source.strides(first)["T"], target.strides(first)["T"]),
            (dim.repeats, dim.source_step, dim.target_step),
            (dim.size, source.dims(first).inner, target.dims(first).inner),
        ):
            shape.append(count)
            sources.append(a)
            targets.append(b)
        yield fold(
            StridedCopy(
                run_bytes=source.layout.item_bytes,
                shape=tuple(shape),
                source_offset=source.base(first) + row.source + token.source + dim.source,
                source_strides=tuple(sources),
                target_offset=target.base(first) + row.target + token.target + dim.target,
                target_strides=tuple(targets),
            )
        )


def _outer_axes(
    source: _Side, target: _Side, parts: tuple[int, ...]
) -> Iterator[tuple[int, int, int]]:
    first, last = parts[0], parts[-1]
    mine, theirs = source.strides(first), target.strides(first)
    yield source.box.layers.size, mine["L"], theirs["L"]
    yield source.box.heads.size, mine["H"], theirs["H"]
    yield len(parts), source.base(last) - source.base(first), target.base(last) - target.base(first)


def _rows_and_tokens(
    source: _Side, target: _Side, part: int
) -> Iterator[tuple[Progression, Progression]]:
    """Progressions over rows times progressions over tokens; over both at once where paged."""
    pairs = list(zip(source.box.rows, target.box.rows, strict=True))
    size = source.box.tokens.size
    if not (source.layout.is_paged or target.layout.is_paged):
        steps = list(segments(size, source.tokens(part, None), target.tokens(part, None)))
        places = [Segment(source.row(part, a), target.row(part, b), 1) for a, b in pairs]
        yield from product(progressions(places), progressions(steps))
        return
    one = Progression(0, 0, 1, 1, 0, 0)
    parts = [s for a, b in pairs for s in _paged_segments(source, target, part, a, b)]
    for progression in progressions(parts):
        yield one, progression


def _paged_segments(
    source: _Side, target: _Side, part: int, source_row: int, target_row: int
) -> Iterator[Segment]:
    step = 0
    source_tokens = source.tokens(part, source_row)
    target_tokens = target.tokens(part, target_row)
    for found in segments(source.box.tokens.size, source_tokens, target_tokens):
        yield Segment(
            found.source + source.row(part, source_row) + source.page(part, source_row, step),
            found.target + target.row(part, target_row) + target.page(part, target_row, step),
            found.size,
        )
        step += found.size
