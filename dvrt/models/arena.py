"""The KV arena of one stage: every entry of every slot's log, in memory that dvrt owns.

One flat tensor, zeroed, the keys of a layer and then its values:

    [layers, 2, slots, kv heads, tokens, dim]         (the two widths may differ)

The last 64 tokens of a slot are scratch: rows that take no part in a step write there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dvrt.errors import ModelError, ProtocolError
from dvrt.kv.layout import Layout
from dvrt.models.spec import EXTENT_TOKENS

SlotRange = tuple[int, int, int]
"""Positions [start, stop) of a slot's log: slot, start, stop."""

GATHERED_RANGES = 4
GATHERED_NUMBERS = 2048
"""So many ranges or more, of no more numbers on average, are packed by one index: slicing each
costs more than copying so little. Beyond that the index costs up to four times what slices do."""


class Geometry(NamedTuple):
    """The shape of one position's entry in one layer."""

    kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def width(self) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim)


class Entries(NamedTuple):
    """The entries of a range of positions: ``[layers, kv heads, tokens, dim]`` each, as views."""

    keys: torch.Tensor
    values: torch.Tensor


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Arena:
    """The log entries of ``n_slots`` slots in ``n_layers`` layers."""

    def __init__(
        self,
        *,
        n_layers: int,
        n_slots: int,
        max_context: int,
        chunk_tokens: int,
        geometry: Geometry,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.geometry = geometry
        self.scratch = round_up(round_up(max_context, chunk_tokens), EXTENT_TOKENS)
        self.tokens = self.scratch + EXTENT_TOKENS
        self._n_slots = n_slots
        per_head = n_slots * geometry.kv_heads * self.tokens
        n_elements = n_layers * per_head * (geometry.key_dim + geometry.value_dim)
        try:
            self.storage = torch.zeros(n_elements, dtype=dtype, device=device)
        except RuntimeError as error:
            gib = n_elements * dtype.itemsize / 2**30
            raise ModelError(f"no memory for the KV cache of {gib:.1f} GiB: {error}") from error
        blocks = self.storage.view(n_layers, per_head * (geometry.key_dim + geometry.value_dim))
        shape = (n_layers, n_slots, geometry.kv_heads, self.tokens)
        self.keys = blocks[:, : per_head * geometry.key_dim].view(*shape, geometry.key_dim)
        self.values = blocks[:, per_head * geometry.key_dim :].view(*shape, geometry.value_dim)

    @property
    def nbytes(self) -> int:
        return self.storage.nbytes

    def release(self) -> None:
        """Give the memory back, whoever still knows the arena."""
        self.storage = self.keys = self.values = self.storage.new_empty(0)

    @property
    def layout(self) -> Layout:
        """The arena as the streaming library sees it. Raises ModelError where the widths differ."""
        if self.geometry.key_dim != self.geometry.value_dim:
            raise ModelError("keys and values of different widths have no common layout")
        return Layout.head_major(
            layers=self.keys.shape[0],
            rows=self._n_slots,
            heads=self.geometry.kv_heads,
            tokens=self.tokens,
            dim=self.geometry.key_dim,
            item_bytes=self.storage.itemsize,
        )

    def entries(self, slot: int, start: int, stop: int) -> Entries:
        """The entries of positions [start, stop), not copied."""
        return Entries(self.keys[:, slot, :, start:stop], self.values[:, slot, :, start:stop])

    def write(self, slot: int, start: int, entries: Entries) -> None:
        """Put entries at the positions from ``start`` on."""
        stop = start + entries.keys.shape[2]
        self.keys[:, slot, :, start:stop] = entries.keys
        self.values[:, slot, :, start:stop] = entries.values

    def pack(self, ranges: Sequence[SlotRange], first: int, last: int) -> torch.Tensor:
        """A flat copy of the entries of these ranges in the arena's layers [first, last).

        Range after range: position by position, of each its layers, of each the keys [heads, dim]
        and then the values.
        """
        width = (last - first) * self.geometry.width
        n_positions = sum([stop - start for _, start, stop in ranges])
        packed = torch.empty(
            n_positions * width, dtype=self.storage.dtype, device=self.storage.device
        )
        is_fine = packed.numel() <= GATHERED_NUMBERS * len(ranges)
        if is_fine and len(ranges) >= GATHERED_RANGES:
            self._gather(ranges, first, last, packed)
            return packed
        at = 0
        for slot, start, stop in ranges:
            after = at + (stop - start) * width
            keys, values = self._by_position(packed[at:after], last - first)
            keys.copy_(self.keys[first:last, slot, :, start:stop].permute(2, 0, 1, 3))
            values.copy_(self.values[first:last, slot, :, start:stop].permute(2, 0, 1, 3))
            at = after
        return packed

    def _gather(
        self, ranges: Sequence[SlotRange], first: int, last: int, packed: torch.Tensor
    ) -> None:
        """As ``pack``, by one index for all ranges: slicing each costs more than few entries do."""
        slots = [slot for slot, start, stop in ranges for _ in range(start, stop)]
        positions = [at for _, start, stop in ranges for at in range(start, stop)]
        where = torch.tensor((slots, positions), dtype=torch.long, device=self.storage.device)
        keys, values = self._by_position(packed, last - first)
        keys.copy_(self.keys[first:last, where[0], :, where[1]])
        values.copy_(self.values[first:last, where[0], :, where[1]])

    def unpack(
        self, slot: int, start: int, stop: int, first: int, last: int, packed: torch.Tensor
    ) -> None:
        """Write what ``pack`` gave for one range. Raises ProtocolError for another size."""
        n = stop - start
        if packed.numel() != n * (last - first) * self.geometry.width:
            raise ProtocolError(f"{packed.numel()} numbers for {n} positions of {last - first}")
        keys, values = self._by_position(packed, last - first)
        self.keys[first:last, slot, :, start:stop] = keys.permute(1, 2, 0, 3)
        self.values[first:last, slot, :, start:stop] = values.permute(1, 2, 0, 3)

    def _by_position(self, packed: torch.Tensor, n_layers: int) -> Entries:
        """Packed entries as ``[positions, layers, kv heads, dim]``, not copied."""
        heads, key_dim, value_dim = self.geometry
        by_layer = packed.view(-1, n_layers, self.geometry.width)
        shape = (by_layer.shape[0], n_layers, heads)
        keys, values = by_layer[..., : heads * key_dim], by_layer[..., heads * key_dim :]
        return Entries(keys.view(*shape, key_dim), values.view(*shape, value_dim))

    def fork(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first ``n_tokens`` entries of one slot to another."""
        self.write(target, 0, self.entries(source, 0, n_tokens))

    def scrub(self, slot: int) -> None:
        """Zero a slot; needed after non-finite entries, which spread NaN even where masked."""
        self.keys[:, slot].zero_()
        self.values[:, slot].zero_()
