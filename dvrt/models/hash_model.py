"""The null device's model: exact, cheap, and wrong as soon as one byte of the log is.

The entry of (layer, position) is a keyed hash of that layer's input there; a layer's output is a
hash of its input and of all entries up to the position, read back from the arena. So one lost,
stale or altered entry changes every later token. NumPy only: no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dvrt.errors import ProtocolError

Hashes = npt.NDArray[np.uint64]
Logits = npt.NDArray[np.float32]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_TO_FLOAT = np.uint64(40)

ENTRY_BYTES = 8


def mix(value: Hashes) -> Hashes:
    """SplitMix64's finaliser, elementwise."""
    value = (value ^ (value >> _SHIFTS[0])) * _MIX_1
    value = (value ^ (value >> _SHIFTS[1])) * _MIX_2
    return value ^ (value >> _SHIFTS[2])


class HashModel:
    """Layers [first_layer, stop_layer) of the hash model, with their arena.

    Inputs are token ids at the first stage and hidden states (uint64, one a position) later on.
    """

    def __init__(
        self,
        *,
        first_layer: int,
        stop_layer: int,
        n_slots: int,
        batch_size: int,
        max_context: int,
        vocab_size: int,
    ) -> None:
        self._batch_size = batch_size
        self._first = first_layer
        layers = np.arange(first_layer, stop_layer, dtype=np.uint64)
        self._keys = mix((layers + np.uint64(1)) * _GOLDEN)
        self._arena = np.zeros((len(layers), n_slots, max_context), dtype=np.uint64)
        self._positions = np.arange(max_context, dtype=np.uint64)
        self._weights = self._positions * np.uint64(2) + np.uint64(1)
        self._vocabulary = np.arange(vocab_size, dtype=np.uint64) * _GOLDEN

    @property
    def kv_bytes(self) -> int:
        return self._arena.nbytes

    @property
    def weights_bytes(self) -> int:
        return self._keys.nbytes

    def decode(self, microbatch: int, positions: Sequence[int], inputs: Any) -> Hashes:
        """Extend each row's log by one; ``positions[row]`` is -1 for a row that takes no part."""
        hidden = self._hidden(inputs)
        out = np.zeros_like(hidden)
        for row, position in enumerate(positions):
            if position >= 0:
                slot = microbatch * self._batch_size + row
                out[row] = self._extend(slot, position, hidden[row : row + 1])[0]
        return out

    def chunk(
        self,
        slot: int,
        start: int,
        n_tokens: int,
        inputs: Any,
        on_layer: Callable[[int], None] | None = None,
    ) -> Hashes:
        """Extend a log by the positions [start, start + n_tokens)."""
        return self._extend(slot, start, self._hidden(inputs)[:n_tokens], on_layer)

    def decode_logits(self, hidden: Hashes, rows: Sequence[int]) -> Logits:
        return self._logits(hidden[list(rows)])

    def chunk_logits(self, hidden: Hashes, n_tokens: int) -> Logits:
        last: Logits = self._logits(hidden[n_tokens - 1 : n_tokens])[0]
        return last

    def _hidden(self, inputs: Any) -> Hashes:
        if isinstance(inputs, bytes | bytearray | memoryview):
            return np.frombuffer(inputs, dtype=np.uint64)
        return mix(np.array(inputs, dtype=np.uint64) + _GOLDEN)

    def _extend(
        self,
        slot: int,
        start: int,
        hidden: Hashes,
        on_layer: Callable[[int], None] | None = None,
    ) -> Hashes:
        """Extend a log by ``len(hidden)`` positions from ``start``; their outputs."""
        stop = start + len(hidden)
        places = self._positions[start:stop] * _GOLDEN
        for layer, key in enumerate(self._keys):
            log = self._arena[layer, slot]
            log[start:stop] = mix(hidden ^ key ^ places)
            if on_layer is not None:
                on_layer(self._first + layer)
            before = (log[:start] * self._weights[:start]).sum(dtype=np.uint64)
            folded = np.cumsum(log[start:stop] * self._weights[start:stop], dtype=np.uint64)
            hidden = mix(hidden + folded + before)
        return hidden

    def _logits(self, hidden: Hashes) -> Logits:
        """Pseudo-random logits in [0, 16), ``[positions, vocabulary]``."""
        noise = mix(hidden[:, None] + self._vocabulary[None, :]) >> _TO_FLOAT
        scaled: Logits = noise.astype(np.float32) * np.float32(2.0**-20)
        return scaled

    def release(self) -> None:
        self._arena = np.zeros((0, 0, 0), dtype=np.uint64)

    def fork(self, source: int, target: int, n_tokens: int) -> None:
        self._arena[:, target, :n_tokens] = self._arena[:, source, :n_tokens]

    def scrub(self, slot: int) -> None:
        self._arena[:, slot] = 0

    def entry_bytes(self, first: int, last: int) -> int:
        """Bytes of the entry of one position in the layers [first, last) of the model."""
        return (last - first) * ENTRY_BYTES

    def pack(self, ranges: Sequence[tuple[int, int, int]], first: int, last: int) -> Hashes:
        """A flat copy of the entries (slot, start, stop), position by position, of each its layers.

        Layers [first, last) of the model.
        """
        layers = self._arena[first - self._first : last - self._first]
        return np.concatenate([layers[:, slot, a:b].T.ravel() for slot, a, b in ranges])

    def unpack(self, slot: int, start: int, stop: int, first: int, last: int, buffer: Any) -> None:
        """Write what ``pack`` gave for one range. Raises ProtocolError for another size."""
        packed = np.frombuffer(buffer, dtype=np.uint64)
        if len(packed) != (stop - start) * (last - first):
            raise ProtocolError(f"{len(packed)} entries for the positions [{start}, {stop})")
        layers = self._arena[first - self._first : last - self._first]
        layers[:, slot, start:stop] = packed.reshape(stop - start, last - first).T

    def entries(self, slot: int, start: int, stop: int) -> Hashes:
        """The entries of positions [start, stop), ``[layers, positions]``, a view of the arena."""
        return self._arena[:, slot, start:stop]
