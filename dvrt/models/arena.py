"""The KV arena of one stage: every entry of every slot's log, in memory that dvrt owns.

One flat tensor, zeroed, the keys of a layer and then its values:

    [layers, 2, slots, kv heads, tokens, dim]         (the two widths may differ)

The last 64 tokens of a slot are scratch: rows that take no part in a step write there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dvrt.errors import ModelError
from dvrt.kv.layout import Layout
from dvrt.models.spec import EXTENT_TOKENS


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

    def fork(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first ``n_tokens`` entries of one slot to another."""
        self.write(target, 0, self.entries(source, 0, n_tokens))

    def scrub(self, slot: int) -> None:
        """Zero a slot; needed after non-finite entries, which spread NaN even where masked."""
        self.keys[:, slot].zero_()
        self.values[:, slot].zero_()
