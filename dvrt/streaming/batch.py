"""A batched handle: one row's piece of a cache, prepared once, then indexed by rows and tokens."""

from __future__ import annotations

from collections.abc import Sequence

from dvrt.kv.handles import Handle
from dvrt.kv.handles import Spot as Spot
from dvrt.kv.layout import Layout
from dvrt.kv.regions import Box
from dvrt.kv.spans import Span
from dvrt.streaming.cache import Cache
from dvrt.streaming.parcels import Packing, form_of, joint_dtype


class Batch:
    """``n_tokens`` tokens of one row, these layers and heads, in the order of ``wire``.

    ``scatter`` and ``gather`` take what ``at`` returns in place of a box: rows that stand at
    different positions move as one, one behind the other. Both ends must use the same ``wire``,
    ``n_tokens``, and numbers of layers and heads; rows and positions are each end's own.
    """

    def __init__(
        self, cache: Cache, *, wire: Layout, layers: Span, heads: Span, n_tokens: int = 1
    ) -> None:
        self._cache = cache
        packed = wire.packed(layers=layers.size, rows=1, heads=heads.size, tokens=n_tokens)
        self._row_bytes = packed.nbytes
        self._form = form_of(Box.whole(packed), wire)
        self._dtype = joint_dtype(cache.layout, wire)
        self._handle = Handle(
            source=cache.layout,
            target=packed,
            layers=(layers, Span.of(0, layers.size)),
            heads=(heads, Span.of(0, heads.size)),
            n_tokens=n_tokens,
        )

    def at(self, spots: Sequence[Spot]) -> Packing:
        """The pieces at these rows and first tokens. Raises ValueError outside the cache."""
        origin, table = Spot(0, 0), self._cache.table
        blocks = [
            copy.shifted(target=number * self._row_bytes)
            for number, spot in enumerate(spots)
            for copy in self._handle.at(Spot(*spot), origin, source_table=table)
        ]
        nbytes = len(spots) * self._row_bytes
        form = self._form if len(spots) == 1 else f"{len(spots)} times {self._form}"
        return Packing(
            nbytes=nbytes,
            parts=(nbytes,),
            blocks=tuple(blocks),
            wire=form,
            dtype=self._dtype,
        )
