"""The arena behind transformers' cache interface: layers write their entries and get views back.

One object serves every call of a stage; ``aim_at_rows`` or ``aim_at_slot`` says before each
forward pass where its entries go and how far the views reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Cache

from dvrt.models.arena import Arena, Geometry
from dvrt.models.spec import EXTENT_TOKENS

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class _Rows:
    """One new entry in each slot of [first, first + n_rows), at ``index`` of the flat layer."""

    first: int
    n_rows: int
    extent: int
    index: torch.Tensor

    def update(self, layer: _Layer, key: torch.Tensor, value: torch.Tensor) -> None:
        layer.flat_keys.index_copy_(0, self.index, key.reshape(-1, key.shape[3]))
        layer.flat_values.index_copy_(0, self.index, value.reshape(-1, value.shape[3]))


@dataclass(slots=True)
class _Slot:
    """``n_tokens`` neighbouring new entries in the slot ``first``; more than those are dropped."""

    first: int
    n_rows: int
    extent: int
    start: int
    n_tokens: int

    def update(self, layer: _Layer, key: torch.Tensor, value: torch.Tensor) -> None:
        stop = self.start + self.n_tokens
        layer.keys[self.first, :, self.start : stop] = key[0, :, : self.n_tokens]
        layer.values[self.first, :, self.start : stop] = value[0, :, : self.n_tokens]


class _Layer:
    """One layer's keys and values: by slot, and flat as ``[slots * heads * tokens, dim]``."""

    __slots__ = ("flat_keys", "flat_values", "keys", "values")

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = keys
        self.values = values
        self.flat_keys = keys.view(-1, keys.shape[-1])
        self.flat_values = values.view(-1, values.shape[-1])

    def window(self, first: int, n_rows: int, extent: int) -> KeysAndValues:
        keys, values = self.keys.narrow(0, first, n_rows), self.values.narrow(0, first, n_rows)
        return keys.narrow(2, 0, extent), values.narrow(2, 0, extent)


class ArenaCache(Cache):
    """Entries of the layers [first_layer, ...) in an arena; the views share the arena's memory."""

    def __init__(self, arena: Arena, first_layer: int) -> None:
        super().__init__(layers=[])
        self._first_layer = first_layer
        self._arena = arena
        self._by_layer = [_Layer(*both) for both in zip(arena.keys, arena.values, strict=True)]
        heads = torch.arange(arena.geometry.kv_heads, device=arena.storage.device)
        self._head_offsets = heads * arena.tokens
        self._aim: _Rows | _Slot | None = None
        self._on_layer: Callable[[int], None] | None = None

    @contextmanager
    def telling(self, on_layer: Callable[[int], None] | None) -> Iterator[None]:
        """Call ``on_layer(layer)`` as soon as a layer has its entries, while this lasts."""
        self._on_layer = on_layer
        try:
            yield
        finally:
            self._on_layer = None

    def aim_at_rows(self, first_slot: int, positions: Sequence[int], extent: int) -> None:
        """One entry for each of the slots from ``first_slot`` on; a position of -1 is scratch."""
        arena, stride = self._arena, self._arena.geometry.kv_heads * self._arena.tokens
        places = [
            (first_slot + row) * stride + (arena.scratch if position < 0 else position)
            for row, position in enumerate(positions)
        ]
        rows = torch.tensor(places, device=arena.storage.device)
        index = (rows[:, None] + self._head_offsets).view(-1)
        self._aim = _Rows(first_slot, len(positions), extent, index)

    def aim_at_slot(self, slot: int, start: int, n_tokens: int, extent: int) -> None:
        """The first ``n_tokens`` new entries go to the slot's positions from ``start`` on."""
        self._aim = _Slot(slot, 1, extent, start, n_tokens)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> KeysAndValues:
        """Append ``[rows, kv heads, tokens, dim]``; gives the keys and values up to the extent."""
        aim = self._aim
        assert aim is not None, "the cache is aimed before each forward pass"
        layer = self._by_layer[layer_idx - self._first_layer]
        aim.update(layer, key_states, value_states)
        if self._on_layer is not None:
            self._on_layer(layer_idx)
        return layer.window(aim.first, aim.n_rows, aim.extent)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions and masks are always given; nobody has to derive them from this."""
        return 0


class ProbeCache(Cache):
    """Takes the entry of one position and notes its shape, layer by layer."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.seen: dict[int, Geometry] = {}

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> KeysAndValues:
        _, heads, n_tokens, key_dim = key_states.shape
        self.seen[layer_idx] = Geometry(heads, key_dim, value_states.shape[-1])
        fill = (0, 0, 0, EXTENT_TOKENS - n_tokens)
        return pad(key_states, fill), pad(value_states, fill)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0
