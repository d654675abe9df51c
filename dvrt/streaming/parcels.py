"""Cutting a plan's copies into parcels: both ends cut alike, from what both know. Pure.

A parcel is a box in packed form: all its keys, then all its values, without gaps, in the order
that the receiver's memory has. Where runs are long on both sides it is not packed at all: the
pieces go straight from memory to memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from dvrt.errors import ConfigError
from dvrt.kv.layout import BOTH_PARTS, Layout, Part, is_same_dtype
from dvrt.kv.plan import Copy
from dvrt.kv.regions import Box, Table, copies
from dvrt.kv.spans import Span
from dvrt.streaming.messages import Grouping
from dvrt.strided import StridedCopy, pair_runs

DIRECT_RUN_BYTES = 64 << 10
MAX_PIECES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Parcel ``index`` of a transfer between two workers; its copies share their microbatches."""

    index: int
    copies: tuple[Copy, ...]
    nbytes: int

    @property
    def last_layer(self) -> int:
        return max(copy.layers.stop for copy in self.copies) - 1


def items(
    group: Sequence[Copy], layout: Layout, grouping: Grouping, max_bytes: int
) -> Iterator[Item]:
    """The parcels of everything that goes from one worker to another, in the order of layers.

    ``layout`` gives only the size of an element. RUNS are cut later, by the sender's memory.
    """
    element = layout.dim * layout.item_bytes
    ordered = sorted(group, key=lambda c: (c.layers.start, c.source_batch, c.target_batch))
    if grouping is Grouping.WHOLE:
        bundles = _bundles(ordered, element, max_bytes)
    else:
        bundles = ((c,) for whole in ordered for c in whole.by_layer())
    index = 0
    for bundle in bundles:
        is_many = len(bundle) > 1
        found = [bundle] if is_many else [(c,) for c in _cut_tokens(bundle[0], element, max_bytes)]
        for piece in found:
            size = sum(_size(copy, element) for copy in piece)
            yield Item(index=index, copies=piece, nbytes=size)
            index += 1


def _bundles(
    ordered: Sequence[Copy], element_bytes: int, max_bytes: int
) -> Iterator[tuple[Copy, ...]]:
    """Neighbours of the same microbatches, together as long as they fit a parcel."""
    bundle: list[Copy] = []
    total = 0
    for copy in ordered:
        size = _size(copy, element_bytes)
        if bundle and (total + size > max_bytes or _batches(copy) != _batches(bundle[0])):
            yield tuple(bundle)
            bundle, total = [], 0
        bundle.append(copy)
        total += size
    if bundle:
        yield tuple(bundle)


def _batches(copy: Copy) -> tuple[int, int]:
    return copy.source_batch, copy.target_batch


def by_layer(found: Sequence[Item]) -> list[Item]:
    """Items in the order in which a prompt computes them; indices stay what they are."""
    return sorted(found, key=lambda item: (item.last_layer, item.index))


def _size(copy: Copy, element_bytes: int) -> int:
    layers, parts, rows, heads, tokens = copy.source_box.shape
    return layers * parts * rows * heads * tokens * element_bytes


def _cut_tokens(copy: Copy, element_bytes: int, max_bytes: int) -> Iterator[Copy]:
    """The copy in pieces of at most ``max_bytes``, or of one token where that is more."""
    size = _size(copy, element_bytes)
    if size <= max_bytes:
        yield copy
        return
    step = max(1, max_bytes * copy.tokens.size // size)
    for start in range(copy.tokens.start, copy.tokens.stop, step):
        tokens = Span.of(start, min(start + step, copy.tokens.stop))
        yield replace(
            copy,
            tokens=tokens,
            source_box=replace(copy.source_box, tokens=tokens),
            target_box=replace(copy.target_box, tokens=tokens),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How boxes of a cache and their packed form become each other.

    ``blocks`` pack, ``unpacking`` is the way back; ``parts`` are the sizes of the contiguous moves
    that the packed form is sent as: keys and values of a box, or all of a bundle of boxes.
    ``wire`` says what lies where in it, ``dtype`` of what type; empty: not said.
    """

    nbytes: int
    parts: tuple[int, ...]
    blocks: tuple[StridedCopy, ...]
    wire: str = ""
    dtype: str = ""

    @property
    def unpacking(self) -> tuple[StridedCopy, ...]:
        return tuple([block.reversed() for block in self.blocks])


def pack_all(own: Layout, boxes: Sequence[Box], table: Table | None, wire: Layout) -> Packing:
    """One packed form for all boxes, one behind the other."""
    found = [packing(own, box, table, wire) for box in boxes]
    if len(found) == 1:
        return found[0]
    blocks: list[StridedCopy] = []
    start = 0
    for one in found:
        blocks.extend([block.shifted(target=start) for block in one.blocks])
        start += one.nbytes
    return Packing(nbytes=start, parts=(start,), blocks=tuple(blocks))


def packing(own: Layout, box: Box, table: Table | None, wire: Layout) -> Packing:
    """``wire`` gives the order of the packed form: the receiver's layout.

    Prepared once for each shape and row set, then only moved along the tokens; where blocks or
    pages interrupt these, prepared anew.
    """
    if "N" in own.order_of(Part.KEY) + own.order_of(Part.VALUE):
        prepared = _prepare(own, box, table, wire)
        return _packing(prepared, [block for _, block in prepared.blocks])
    if box.tokens.stop > own.tokens:
        raise ValueError(f"tokens {box.tokens} of a layout with {own.tokens}")
    first = box.tokens.start
    prepared = _at_first_token(own, replace(box, tokens=box.tokens.seen_from(first)), wire)
    moved = [block.shifted(source=first * stride) for stride, block in prepared.blocks]
    return _packing(prepared, moved)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The size of each packed part, and each block with how far a token moves it."""

    part_bytes: int
    n_parts: int
    blocks: tuple[tuple[int, StridedCopy], ...]
    wire: str
    dtype: str


def _packing(prepared: _Prepared, blocks: Sequence[StridedCopy]) -> Packing:
    parts = (prepared.part_bytes,) * prepared.n_parts
    return Packing(
        nbytes=sum(parts),
        parts=parts,
        blocks=tuple(blocks),
        wire=prepared.wire,
        dtype=prepared.dtype,
    )


@lru_cache(maxsize=1024)
def _at_first_token(own: Layout, box: Box, wire: Layout) -> _Prepared:
    return _prepare(own, box, None, wire)


def _prepare(own: Layout, box: Box, table: Table | None, wire: Layout) -> _Prepared:
    layers, _, rows, heads, tokens = box.shape
    packed = wire.packed(layers=layers, rows=rows, heads=heads, tokens=tokens)
    strides = {part: own.strides(part).by_axis["T"] for part in box.parts}
    is_joint = box.parts == BOTH_PARTS and len(set(strides.values())) == 1
    blocks: list[tuple[int, StridedCopy]] = []
    for index, parts in enumerate([BOTH_PARTS] if is_joint else [(p,) for p in box.parts]):
        mine, theirs = replace(box, parts=parts), replace(Box.whole(packed), parts=parts)
        shift = index * packed.part_bytes - packed.strides(parts[0]).base
        for block in copies(own, mine, packed, theirs, table):
            blocks.append((strides[parts[0]], block.shifted(target=shift)))
    form, dtype = form_of(box, wire), joint_dtype(own, wire)
    return _Prepared(packed.part_bytes, len(box.parts), tuple(blocks), form, dtype)


def form_of(box: Box, wire: Layout) -> str:
    """What lies where in the packed form of a box, as text: the same where ends agree."""
    layers, _, rows, heads, tokens = box.shape
    parts = " and ".join([part.name.lower() for part in box.parts])
    shape = f"{layers} layers, {rows} rows, {heads} heads, {tokens} tokens"
    return f"{wire.packed_form}: {parts} of {shape}"


def joint_dtype(own: Layout, wire: Layout) -> str:
    """The type of elements, as named by either. Raises ConfigError where they differ."""
    if not is_same_dtype(own.dtype, wire.dtype):
        raise ConfigError(f"dtype differs: {own.dtype!r} in the cache, {wire.dtype!r} on the wire")
    return wire.dtype or own.dtype


def pieces(found: Packing) -> list[tuple[int, int, int]]:
    """(offset in memory, offset in the packed form, bytes), contiguous in both, as packed."""
    runs = pair_runs(found.blocks)
    order = runs.target.argsort(kind="stable")
    columns = (runs.source[order], runs.target[order], runs.nbytes[order])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def is_direct(found: Packing) -> bool:
    """Whether memory itself can be sent: few and long pieces."""
    n_pieces = sum(block.n_runs for block in found.blocks)
    return n_pieces <= MAX_PIECES and n_pieces * DIRECT_RUN_BYTES <= found.nbytes
