"""What a stage's model is to the runtime: layers, an arena, and the entries in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Hidden = Any
"""A stage's hidden states of one call: whatever the model takes and Region.of accepts."""


class StageModel(Protocol):
    """The layers of one stage and their KV arena, as the executor drives them.

    ``inputs`` are token ids at the first stage and received hidden states (bytes-like) later on.
    Layers are named by their place in the whole model.
    """

    @property
    def weights_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    def decode(self, microbatch: int, positions: Sequence[int], inputs: Any) -> Hidden:
        """Extend the logs of a microbatch by one position; -1 marks a row that takes no part.

        ``inputs`` holds one item for every row of the batch, used or not.
        """
        ...

    def chunk(
        self,
        slot: int,
        start: int,
        n_tokens: int,
        inputs: Any,
        on_layer: Callable[[int], None] | None = None,
    ) -> Hidden:
        """Extend one log by the positions [start, start + n_tokens).

        ``on_layer(layer)`` is called when that layer's entries can be packed, and before the next
        layer computes.
        """
        ...

    def decode_logits(self, hidden: Hidden, rows: Sequence[int]) -> Any:
        """``[len(rows), vocabulary]`` of these rows of a decode's result (last stage)."""
        ...

    def chunk_logits(self, hidden: Hidden, n_tokens: int) -> Any:
        """``[vocabulary]`` behind the chunk's last position (last stage)."""
        ...

    def release(self) -> None:
        """Let go of weights and logs at once, though cycles may hold them; it computes no more."""
        ...

    def fork(self, source: int, target: int, n_tokens: int) -> None: ...
    def scrub(self, slot: int) -> None: ...

    def entry_bytes(self, first: int, last: int) -> int:
        """Bytes of one position's entry in the layers [first, last)."""
        ...

    def pack(self, ranges: Sequence[tuple[int, int, int]], first: int, last: int) -> Any:
        """A flat copy in host memory of the entries (slot, start, stop) in these layers.

        Range after range: position by position, of each its layers, of each the keys [heads, dim]
        and then the values. Whatever ``Region.of`` accepts.
        """
        ...

    def unpack(self, slot: int, start: int, stop: int, first: int, last: int, buffer: Any) -> None:
        """Write what ``pack`` gave for one range. Raises ProtocolError for another size."""
        ...
