"""Layouts: where each element of a KV cache lies, as a value.

A layout names the order of the dimensions from the outermost to the innermost, one letter each:

    L layers   C keys, then values   B rows      H heads
    N blocks of tokens               T tokens (of a block)
    D dim      X lanes: the innermost ``lanes`` elements of dim, when dim is split

Without C, all keys come first and all values after them, and the two may be ordered differently.
Without B, blocks are pages of a pool, and a table says which pages a row has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum
from functools import cache
from math import gcd, prod
from typing import NamedTuple, NotRequired, TypedDict, Unpack

from dvrt.wire import message


class Part(IntEnum):
    KEY = 0
    VALUE = 1


BOTH_PARTS = (Part.KEY, Part.VALUE)


class Strides(NamedTuple):
    """Bytes: where a part begins, and the distance of two neighbours along each axis."""

    base: int
    by_axis: Mapping[str, int]


class Sizes(TypedDict):
    """What every layout is told; see Layout."""

    layers: int
    rows: int
    heads: int
    tokens: int
    dim: int
    item_bytes: int
    dtype: NotRequired[str]


@message("kv.layout", version=2)
class Layout:
    """The shape and order of one buffer that holds keys and values.

    ``value_order`` empty: as ``order``. ``block_tokens`` is used with N, ``lanes`` with X;
    ``pages`` is the number of blocks in the pool of a layout without B. ``tokens`` is the capacity
    of a row. ``dtype`` names the type of an element, such as "float16"; empty: not named, and then
    not compared. Raises ValueError for sizes or orders that make no layout.
    """

    order: str
    value_order: str = ""
    layers: int
    rows: int
    heads: int
    tokens: int
    dim: int
    item_bytes: int
    lanes: int = 1
    block_tokens: int = 0
    pages: int = 0
    dtype: str = ""

    def __post_init__(self) -> None:
        sizes = (self.layers, self.rows, self.heads, self.tokens, self.dim, self.item_bytes)
        if min(sizes) < 1:
            raise ValueError(f"sizes are at least 1: {self!r}")
        for order in (self.order, self.value_order or self.order):
            self._check_order(order)
        if "C" in self.order + self.value_order and self.value_order not in ("", self.order):
            raise ValueError("keys and values of one tensor (C) have one order")
        if self.is_paged and ("B" in self.order_of(Part.VALUE) or self.pages < 1):
            raise ValueError("a pool of pages holds keys and values, and at least one page")

    def _check_order(self, order: str) -> None:
        rest = set(order) - set("CNX")
        if len(set(order)) != len(order) or rest not in (set("LBHTD"), set("LHTD")):
            raise ValueError(f"order {order!r}: expected L B H T D, once each, and C N X at will")
        if "B" not in order and "N" not in order:
            raise ValueError(f"order {order!r}: pages (no B) need blocks (N)")
        if "N" in order and (self.block_tokens < 1 or self.tokens % self.block_tokens):
            raise ValueError(f"{self.tokens} tokens in blocks of {self.block_tokens}")
        if "X" in order and (self.lanes < 1 or self.dim % self.lanes):
            raise ValueError(f"dim {self.dim} in lanes of {self.lanes}")

    @classmethod
    def paper(cls, **sizes: Unpack[Sizes]) -> Layout:
        """DéjàVu's: keys ``[L,B,H,Dh/x,T,x]`` with x = 16 bytes, values ``[L,B,H,T,Dh]``.

        ``x`` is smaller where 16 bytes do not divide a head.
        """
        whole = cls(order="LBHTD", **sizes)
        lanes = gcd(whole.dim, max(1, 16 // whole.item_bytes))
        return replace(whole, order="LBHDTX", value_order="LBHTD", lanes=lanes)

    @classmethod
    def head_major(cls, **sizes: Unpack[Sizes]) -> Layout:
        """``[L,2,B,H,T,D]``: what attention on the CPU wants."""
        return cls(order="LCBHTD", **sizes)

    @classmethod
    def token_major(cls, **sizes: Unpack[Sizes]) -> Layout:
        """``[L,2,B,T,H,D]``: usual on CUDA."""
        return cls(order="LCBTHD", **sizes)

    @classmethod
    def paged(cls, *, block_tokens: int, pages: int, **sizes: Unpack[Sizes]) -> Layout:
        """``[L,2,pages,block,H,D]``: a pool of pages, with a table of each row's pages."""
        return cls(order="LCNTHD", block_tokens=block_tokens, pages=pages, **sizes)

    def packed(self, *, layers: int, rows: int, heads: int, tokens: int) -> Layout:
        """This order without gaps for a box of that shape: all its keys, then all its values."""
        return Layout(
            order=self._packed_order(Part.KEY),
            value_order=self._packed_order(Part.VALUE),
            layers=layers,
            rows=rows,
            heads=heads,
            tokens=tokens,
            dim=self.dim,
            item_bytes=self.item_bytes,
            lanes=self.lanes,
            dtype=self.dtype,
        )

    def _packed_order(self, part: Part) -> str:
        return self.order_of(part).replace("C", "").replace("N", "B" if self.is_paged else "")

    @property
    def packed_form(self) -> str:
        """The order and the elements of what ``packed`` gives, as text; the same for the same."""
        no_lanes = "DX" if self.lanes > 1 else "X"  # next to each other, or one alone
        keys, values = (
            self._packed_order(part).replace(no_lanes, no_lanes[:-1]) for part in BOTH_PARTS
        )
        lanes = f" in lanes of {self.lanes}" if "X" in keys + values else ""
        return f"{keys} {values}, {self.dim} of {self.item_bytes} bytes{lanes}"

    @property
    def is_paged(self) -> bool:
        return "B" not in self.order

    @property
    def nbytes(self) -> int:
        """The size of the whole buffer, keys and values."""
        return 2 * self.part_bytes

    @property
    def part_bytes(self) -> int:
        return self.item_bytes * prod(self.extent(a) for a in self.order if a != "C")

    @property
    def entry_bytes(self) -> int:
        """The size of the keys and values of one token of one row."""
        return 2 * self.layers * self.heads * self.dim * self.item_bytes

    def order_of(self, part: Part) -> str:
        return self.value_order or self.order if part == Part.VALUE else self.order

    def extent(self, axis: str, part: Part = Part.KEY) -> int:
        """How many steps an axis has in that part."""
        match axis:
            case "L":
                return self.layers
            case "C":
                return 2
            case "B":
                return self.rows
            case "H":
                return self.heads
            case "N":
                return self.pages if self.is_paged else self.tokens // self.block_tokens
            case "T":
                return self.block_tokens if "N" in self.order_of(part) else self.tokens
            case "D":
                return self.dim // self.lanes if "X" in self.order_of(part) else self.dim
            case "X":
                return self.lanes
        raise ValueError(f"axis {axis!r} is unknown")

    def strides(self, part: Part) -> Strides:
        """Base and strides in bytes; axes that the part's order does not name have none."""
        return _strides(self, part)

    def offset(
        self, part: Part, *, layer: int = 0, row: int = 0, head: int = 0, token: int = 0
    ) -> int:
        """The byte where the first element of an entry lies; ``row`` is a page where paged."""
        base, by_axis = self.strides(part)
        place = base + layer * by_axis["L"] + head * by_axis["H"]
        block, step = divmod(token, self.block_tokens) if "N" in by_axis else (0, token)
        if self.is_paged:
            return place + row * by_axis["N"] + step * by_axis["T"]
        return place + row * by_axis["B"] + block * by_axis.get("N", 0) + step * by_axis["T"]


def is_same_dtype(one: str, other: str) -> bool:
    """Whether two names of types agree; one that is empty agrees with any."""
    return one == other or not (one and other)


@cache
def _strides(layout: Layout, part: Part) -> Strides:
    by_axis: dict[str, int] = {}
    step = layout.item_bytes
    for axis in reversed(layout.order_of(part)):
        by_axis[axis] = step
        step *= layout.extent(axis, part)
    if part == Part.KEY:
        return Strides(0, by_axis)
    return Strides(by_axis.get("C", layout.part_bytes), by_axis)
