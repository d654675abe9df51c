"""Copies prepared once and indexed many times: a box that moves along rows and tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from dvrt.kv.layout import BOTH_PARTS, Layout, Part
from dvrt.kv.regions import Box, Table, copies
from dvrt.kv.spans import Span
from dvrt.strided import StridedCopy


class Spot(NamedTuple):
    """Where a moving box stands: its row and its first token."""

    row: int
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """One row's box of ``n_tokens`` from one layout to another, for any row and position.

    ``at`` costs an addition where positions are evenly spaced (no blocks, or one token), and the
    computation of the copies elsewhere (pages, several tokens of a blocked layout).
    """

    source: Layout
    target: Layout
    layers: tuple[Span, Span]
    heads: tuple[Span, Span]
    n_tokens: int
    _at_origin: tuple[tuple[Part, StridedCopy], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        made = () if self._needs_tables else self._prepared()
        object.__setattr__(self, "_at_origin", made)

    def _prepared(self) -> tuple[tuple[Part, StridedCopy], ...]:
        """The copies at row 0, token 0, each with a part that tells how it moves."""
        layouts = (self.source, self.target)
        is_alike = all(_steps(s, Part.KEY) == _steps(s, Part.VALUE) for s in layouts)
        origin = Spot(0, 0)
        return tuple(
            [
                (parts[0], copy)
                for parts in ([BOTH_PARTS] if is_alike else [(Part.KEY,), (Part.VALUE,)])
                for copy in self._copies(origin, origin, None, None, parts)
            ]
        )

    @property
    def _needs_tables(self) -> bool:
        return self.source.is_paged or self.target.is_paged

    @property
    def _is_even(self) -> bool:
        return self.n_tokens == 1 or not any("N" in s.order for s in (self.source, self.target))

    def at(
        self,
        source: Spot,
        target: Spot,
        *,
        source_table: Table | None = None,
        target_table: Table | None = None,
    ) -> tuple[StridedCopy, ...]:
        """The copies of the box at these spots. Raises ValueError outside a layout."""
        if self._needs_tables or not self._is_even:
            return self._copies(source, target, source_table, target_table)
        return tuple(
            [
                copy.shifted(
                    source=_distance(self.source, part, source, self.n_tokens),
                    target=_distance(self.target, part, target, self.n_tokens),
                )
                for part, copy in self._at_origin
            ]
        )

    def _copies(
        self,
        source: Spot,
        target: Spot,
        source_table: Table | None,
        target_table: Table | None,
        parts: tuple[Part, ...] = BOTH_PARTS,
    ) -> tuple[StridedCopy, ...]:
        boxes = [
            Box(
                layers=layers,
                heads=heads,
                rows=(spot.row,),
                tokens=Span.of(spot.token, spot.token + self.n_tokens),
                parts=parts,
            )
            for layers, heads, spot in zip(self.layers, self.heads, (source, target), strict=True)
        ]
        return copies(self.source, boxes[0], self.target, boxes[1], source_table, target_table)


def _steps(layout: Layout, part: Part) -> tuple[int, ...]:
    by_axis = layout.strides(part).by_axis
    return tuple([by_axis.get(axis, 0) for axis in "BNT"])


def _distance(layout: Layout, part: Part, spot: Spot, n_tokens: int) -> int:
    """Bytes from row 0, token 0 to ``spot``."""
    if not 0 <= spot.row < layout.rows or not 0 <= spot.token <= layout.tokens - n_tokens:
        raise ValueError(f"{spot} of a layout with {layout.rows} rows of {layout.tokens}")
    return layout.offset(part, row=spot.row, token=spot.token) - layout.strides(part).base
