"""One stage that computes: its layers' weights, its KV arena, and steps through them.

Synchronous and for one thread. It knows slots and positions, and nothing of requests or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dvrt.errors import ProtocolError
from dvrt.models.arena import Arena, Entries, SlotRange, round_up
from dvrt.models.cache import ArenaCache
from dvrt.models.forward import Forward
from dvrt.models.held_weights import HeldWeights
from dvrt.models.loader import load_stage
from dvrt.models.spec import EXTENT_TOKENS, StageSpec
from dvrt.models.trials import examine
from dvrt.models.weights import Progress

Logits = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Inputs = Sequence[int] | torch.Tensor | bytes | bytearray | memoryview
"""Token ids at the first stage; hidden states, as a tensor or its bytes, at a later one."""

_FEWEST_EXACT_ROWS = 4
"""With 2 or 3 rows and odd widths, matrix products were seen to round a row by its place."""


class StageRunner:
    """The layers [first, stop) of a checkpoint. See ``StageSpec`` for slots, rows and exactness.

    Call it on one thread at a time; ``n_threads`` is set in PyTorch for the one that calls.
    Weights that are ``held`` are not read again. Raises ModelError for a checkpoint that cannot be
    loaded or run.
    """

    def __init__(
        self, spec: StageSpec, progress: Progress | None = None, held: HeldWeights | None = None
    ) -> None:
        self.spec = spec
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._device = torch.device(spec.device)
        self._use_threads()
        with torch.inference_mode():
            stage = load_stage(spec, progress, held)
            self.weights_bytes = stage.weights_bytes
            extent = round_up(round_up(spec.max_context, spec.chunk_tokens), EXTENT_TOKENS)
            self._forward = Forward(stage, spec, extent=extent)
            self._geometry = examine(self._forward)
        self.hidden_size = self._forward.hidden_size
        self._n_rows = _exact_rows(spec.batch_size) if spec.exact else spec.batch_size
        self.arena = self._new_arena()
        self._cache = ArenaCache(self.arena, spec.first)
        self._columns = torch.arange(self.arena.tokens, device=self._device)
        self._open = torch.zeros((), dtype=self._dtype, device=self._device)
        self._shut = torch.full_like(self._open, float("-inf"))

    def __repr__(self) -> str:
        first, stop = self.spec.layers
        return f"<StageRunner {self.spec.directory} [{first}, {stop}) of {self.spec.n_layers}>"

    def reserve(self, n_microbatches: int) -> None:
        """Have room for so many microbatches; what logs there were are gone. Raises ModelError."""
        self.spec = self._forward.spec = replace(self.spec, n_microbatches=n_microbatches)
        self.arena.release()
        self.arena = self._new_arena()
        self._cache = ArenaCache(self.arena, self.spec.first)

    def release(self) -> None:
        """Let go of weights and logs at once; it computes no more."""
        self._forward.release()
        self.arena.release()
        del self._cache  # which has views of it

    def _new_arena(self) -> Arena:
        spec = self.spec
        return Arena(
            n_layers=spec.stop - spec.first,
            n_slots=spec.n_slots + self._n_rows - spec.batch_size,
            max_context=spec.max_context,
            chunk_tokens=spec.chunk_tokens,
            geometry=self._geometry,
            dtype=self._dtype,
            device=self._device,
        )

    @property
    def kv_bytes(self) -> int:
        return self.arena.nbytes

    @torch.inference_mode()
    def decode(self, microbatch: int, positions: Sequence[int], inputs: Inputs) -> torch.Tensor:
        """Extend the logs of a microbatch by one position each; -1 for a row that takes no part.

        ``inputs`` has an item for every row of the batch, used or not, and so has the answer:
        hidden states ``[batch_size, 1, hidden_size]``, contiguous; idle rows are of no meaning.
        """
        self._use_threads()
        self._check_decode(microbatch, positions)
        first, stop = self._span(positions)
        taken = list(positions[first:stop])
        taken += [-1] * (self._n_rows - len(taken) if self.spec.exact else 0)
        hidden = self._rows(inputs, first, stop, len(taken))
        extent = round_up(max(taken) + 1, EXTENT_TOKENS)
        self._cache.aim_at_rows(microbatch * self.spec.batch_size + first, taken, extent)
        places = torch.tensor(taken, device=self._device).clamp_(min=0)[:, None]
        mask = self._mask(places[:, None, :], extent)
        out = self._forward.layers(hidden, mask, places, self._cache)
        return self._batch(out, first, stop)

    @torch.inference_mode()
    def chunk(
        self,
        slot: int,
        start: int,
        n_tokens: int,
        inputs: Inputs,
        on_layer: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Extend one log by the positions [start, start + n_tokens) of a prompt.

        In exact mode ``start`` is a multiple of ``chunk_tokens``, ``n_tokens`` at most that.
        ``on_layer(layer)`` is called when that layer's entries are in the arena and before the next
        layer computes. The answer is ``[1, n_tokens, hidden_size]``, contiguous.
        """
        self._use_threads()
        self._check_chunk(slot, start, n_tokens)
        width = self.spec.chunk_tokens if self.spec.exact else n_tokens
        hidden = self._prompt(inputs, n_tokens, width)
        extent = round_up(start + width, EXTENT_TOKENS)
        self._cache.aim_at_slot(slot, start, n_tokens, extent)
        places = self._columns[start : start + width].clamp(max=self.spec.max_context - 1)[None]
        mask = self._mask(places[:, None, :], extent)
        with self._cache.telling(on_layer):
            out = self._forward.layers(hidden, mask, places, self._cache)
        return out[:, :n_tokens].contiguous()

    @torch.inference_mode()
    def decode_logits(self, hidden: Inputs, rows: Sequence[int]) -> Logits:
        """``[len(rows), vocabulary]`` of these rows of what ``decode`` gave; at the last stage."""
        self._use_threads()
        states = self._states(hidden, self.spec.batch_size)
        if not self.spec.exact:
            return self._forward.logits(states[list(rows)])[:, 0].numpy(force=True)
        logits = self._forward.logits(_pad(states, self._n_rows))
        return logits[list(rows), 0].numpy(force=True)

    @torch.inference_mode()
    def chunk_logits(self, hidden: Inputs, n_tokens: int) -> Logits:
        """``[vocabulary]`` behind the last of the ``n_tokens`` positions of what ``chunk`` gave."""
        self._use_threads()
        states = self._states(hidden, n_tokens).view(1, n_tokens, -1)
        return self._forward.logits(states[:, -1:])[0, 0].numpy(force=True)

    def fork(self, source: int, target: int, n_tokens: int) -> None:
        """The slot ``target`` gets the first ``n_tokens`` entries of ``source``."""
        self.arena.fork(source, target, n_tokens)

    def scrub(self, slot: int) -> None:
        """Zero a slot's entries; needed once non-finite values were computed there."""
        self.arena.scrub(slot)

    def entries(self, slot: int, start: int, stop: int) -> Entries:
        """Views of the entries of positions [start, stop) of a slot's log."""
        return self.arena.entries(slot, start, stop)

    def write_entries(self, slot: int, start: int, entries: Entries) -> None:
        """Put entries into a slot's log at the positions from ``start`` on."""
        self.arena.write(slot, start, entries)

    def entry_bytes(self, first: int, last: int) -> int:
        """Bytes of the entry of one position in the layers [first, last) of the model."""
        return (last - first) * self.arena.geometry.width * self._dtype.itemsize

    @torch.inference_mode()
    def pack(self, ranges: Sequence[SlotRange], first: int, last: int) -> Bytes:
        """A copy in host memory of these ranges' entries in the layers [first, last) of the model.

        Its form is that of ``Arena.pack``.
        """
        mine = self.spec.first
        packed = self.arena.pack(ranges, first - mine, last - mine)
        return packed.view(torch.uint8).numpy(force=True)

    @torch.inference_mode()
    def unpack(self, slot: int, start: int, stop: int, first: int, last: int, buffer: Any) -> None:
        """Write what ``pack`` gave for one range. Raises ProtocolError for another size."""
        if len(buffer) != (stop - start) * self.entry_bytes(first, last):
            raise ProtocolError(f"{len(buffer)} bytes for the positions [{start}, {stop})")
        writable = buffer if isinstance(buffer, bytearray) else bytearray(buffer)
        packed = torch.frombuffer(writable, dtype=self._dtype).to(self._device)
        mine = self.spec.first
        self.arena.unpack(slot, start, stop, first - mine, last - mine, packed)

    def first_layer_only(self) -> AbstractContextManager[None]:
        """For trials: the stage computes with the first of its layers only while this lasts."""
        return self._forward.first_layer_only()

    def _use_threads(self) -> None:
        if torch.get_num_threads() != self.spec.n_threads:
            torch.set_num_threads(self.spec.n_threads)

    def _span(self, positions: Sequence[int]) -> tuple[int, int]:
        """The rows to compute: all in exact mode, else from the first active to the last one."""
        if self.spec.exact:
            return 0, len(positions)
        active = [row for row, position in enumerate(positions) if position >= 0]
        return active[0], active[-1] + 1

    def _check_decode(self, microbatch: int, positions: Sequence[int]) -> None:
        if not 0 <= microbatch < self.spec.n_microbatches:
            raise ProtocolError(f"microbatch {microbatch} of {self.spec.n_microbatches}")
        if len(positions) != self.spec.batch_size:
            raise ProtocolError(f"{len(positions)} positions for {self.spec.batch_size} rows")
        if not 0 <= max(positions) < self.spec.max_context or min(positions) < -1:
            raise ProtocolError(f"positions {list(positions)}, context {self.spec.max_context}")

    def _check_chunk(self, slot: int, start: int, n_tokens: int) -> None:
        if not 0 <= slot < self.spec.n_slots:
            raise ProtocolError(f"slot {slot} of {self.spec.n_slots}")
        if start < 0 or n_tokens < 1 or start + n_tokens > self.spec.max_context:
            raise ProtocolError(
                f"a chunk [{start}, {start + n_tokens}), context {self.spec.max_context}"
            )
        size = self.spec.chunk_tokens
        if self.spec.exact and (start % size or n_tokens > size):
            raise ProtocolError(
                f"a chunk [{start}, {start + n_tokens}); exact mode has chunks of {size}"
            )

    def _mask(self, places: torch.Tensor, extent: int) -> torch.Tensor:
        """Additive ``[rows, 1, tokens, extent]``: each position sees itself and those before it."""
        sees = self._columns[:extent] <= places[..., None]
        return torch.where(sees, self._open, self._shut)

    def _rows(self, inputs: Inputs, first: int, stop: int, n_rows: int) -> torch.Tensor:
        """The inputs of the rows [first, stop), padded to ``n_rows``: ``[n_rows, 1, width]``."""
        if not self.spec.is_first:
            return _pad(self._states(inputs, self.spec.batch_size)[first:stop], n_rows)
        token_ids = self._token_ids(inputs, self.spec.batch_size)[first:stop]
        token_ids += [0] * (n_rows - len(token_ids))
        return self._forward.embed(torch.tensor(token_ids, device=self._device)[:, None])

    def _prompt(self, inputs: Inputs, n_tokens: int, width: int) -> torch.Tensor:
        """The inputs of a chunk, padded to ``width`` tokens: ``[1, width, width of a state]``."""
        if not self.spec.is_first:
            return _pad(self._states(inputs, n_tokens), width).view(1, width, -1)
        token_ids = self._token_ids(inputs, n_tokens) + [0] * (width - n_tokens)
        return self._forward.embed(torch.tensor(token_ids, device=self._device)[None])

    def _token_ids(self, inputs: Any, n_items: int) -> list[int]:
        token_ids = list(inputs)
        if len(token_ids) != n_items:
            raise ProtocolError(f"{len(token_ids)} token ids for {n_items} items")
        return token_ids

    def _states(self, inputs: Any, n_items: int) -> torch.Tensor:
        """Hidden states ``[n_items, 1, hidden_size]`` from a tensor or from its bytes."""
        if not isinstance(inputs, torch.Tensor):
            writable = inputs if isinstance(inputs, bytearray) else bytearray(inputs)
            if len(writable) != n_items * self.hidden_size * self._dtype.itemsize:
                raise ProtocolError(f"{len(writable)} bytes of hidden states for {n_items} items")
            inputs = torch.frombuffer(writable, dtype=self._dtype)
        states: torch.Tensor = inputs.to(self._device)
        return states.view(n_items, 1, -1)

    def _batch(self, out: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """The computed rows as those of a whole batch."""
        n_rows = self.spec.batch_size
        if stop - first == n_rows:
            return out[:n_rows].contiguous()
        batch = out.new_zeros((n_rows, 1, out.shape[2]))
        batch[first:stop] = out
        return batch


def _exact_rows(batch_size: int) -> int:
    return batch_size if batch_size == 1 else max(batch_size, _FEWEST_EXACT_ROWS)


def _pad(states: torch.Tensor, n_items: int) -> torch.Tensor:
    missing = n_items - states.shape[0]
    if missing <= 0:
        return states
    return torch.cat([states, states.new_zeros((missing, *states.shape[1:]))])
