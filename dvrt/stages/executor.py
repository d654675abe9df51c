"""Applies steps to one stage: checks the log's rules, runs the model, draws tokens at the end.

Synchronous; runs on the stage's compute and is the only one that touches the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dvrt.buffers import MemoryKind, Region
from dvrt.control.steps import Chunk, DrawFailed, Ship, Step
from dvrt.errors import ProtocolError
from dvrt.kv.spans import Span
from dvrt.requests import SampledToken
from dvrt.stages.cargo import PIECE_BYTES, Cargo, Outlet, Sealed
from dvrt.stages.drawing import Draw, Drawings
from dvrt.stages.ledger import Ledger
from dvrt.stages.model import Hidden, StageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What a step gave: hidden states for the next stage, or the drawn tokens at the last one."""

    hidden: tuple[Hidden, ...] = ()
    decoded: tuple[SampledToken | DrawFailed, ...] = ()
    firsts: tuple[tuple[SampledToken | DrawFailed, ...], ...] = ()


class StageExecutor:
    """One stage's state: the model with its arena, the ledger of logs, the drawing at the end.

    ``outlet`` takes what steps send to other pipelines, from the compute.
    """

    def __init__(
        self,
        model: StageModel,
        *,
        span: Span,
        n_layers: int,
        n_slots: int,
        batch_size: int,
        max_context: int,
        draw: Draw | None,
    ) -> None:
        """The stage has the layers ``span`` of ``n_layers``; ``draw`` is the last stage's."""
        self.model = model
        self.span = span
        self.ledger = Ledger(model, span, n_slots=n_slots, max_context=max_context)
        self.outlet: Outlet | None = None
        self._batch_size = batch_size
        self._is_first = span.start == 0
        self._is_last = span.stop == n_layers
        self._drawings = Drawings(draw)

    def execute(self, step: Step, received: Sequence[bytearray]) -> Executed:
        """Apply a step. Raises ProtocolError when it breaks the log's rules."""
        self._begin(step)
        inputs = list(received)
        if not self._is_first and len(inputs) != bool(step.decodes) + len(step.chunks):
            raise ProtocolError(f"step {step.id} came with {len(inputs)} hidden states")
        hidden: list[Hidden] = []
        if step.decodes:
            hidden.append(self._decode(step, None if self._is_first else inputs.pop(0)))
        for chunk in step.chunks:
            hidden.append(self._chunk(chunk, None if self._is_first else inputs.pop(0)))
        if self._is_last:
            return self._finish(step, hidden)
        return Executed(hidden=tuple([_in_host_memory(each) for each in hidden]))

    def _begin(self, step: Step) -> None:
        for slot in step.scrubs:
            self.model.scrub(slot)
        for item in step.opens:
            self.ledger.open(item)
            self._drawings.begin(item.slot, item.sampling, item.sample)
        for adopt in step.adopts:
            self.ledger.adopt(adopt)
            self._drawings.begin(adopt.slot, adopt.sampling, adopt.sample, adopt.context_ids)
        for fork in step.forks:
            self.ledger.fork(fork)
            self._drawings.begin(fork.target, fork.sampling, fork.sample, fork.context_ids)
        for ship in step.ships:
            self._ship(ship)

    def _decode(self, step: Step, received: bytearray | None) -> Hidden:
        positions, tokens = [-1] * self._batch_size, [0] * self._batch_size
        for item in step.decodes:
            stop = item.position + 1
            self.ledger.extend(item.slot, item.seq, item.epoch, item.position, stop)
            row = self._row(step, item.slot)
            positions[row], tokens[row] = item.position, item.token
            self._drawings.remember(item.slot, (item.token,))
        return self.model.decode(
            step.microbatch, positions, tokens if received is None else received
        )

    def _chunk(self, chunk: Chunk, received: bytearray | None) -> Hidden:
        self.ledger.extend(chunk.slot, chunk.seq, chunk.epoch, chunk.start, chunk.stop)
        self._drawings.remember(chunk.slot, chunk.tokens)
        inputs = chunk.tokens if received is None else received
        if chunk.to is None:
            return self.model.chunk(chunk.slot, chunk.start, len(chunk.tokens), inputs)
        hidden = self.model.chunk(
            chunk.slot,
            chunk.start,
            len(chunk.tokens),
            inputs,
            lambda layer: self._send_layer(chunk, layer),
        )
        if chunk.commits:
            self._seal(chunk, chunk.to, chunk.stop)
        return hidden

    def _row(self, step: Step, slot: int) -> int:
        microbatch, row = divmod(slot, self._batch_size)
        if microbatch != step.microbatch:
            raise ProtocolError(f"step {step.id} of microbatch {step.microbatch} names slot {slot}")
        return row

    # Sending logs to other pipelines.

    def _ship(self, ship: Ship) -> None:
        """Entries do not change while their log is there, so they are packed when they leave."""
        self.ledger.require(ship.slot, ship.seq, ship.epoch, ship.stop)
        self._put(ship, ship.to, self.span, 0, ship.stop, None)
        if ship.commits:
            self._seal(ship, ship.to, ship.stop)

    def _send_layer(self, chunk: Chunk, layer: int) -> None:
        """A layer of a chunk is computed: off with it, while the next one computes."""
        assert chunk.to is not None
        assert self.outlet is not None, "a stage that ships has an outlet"
        layers = Span.of(layer, layer + 1)
        entry_bytes = self.model.entry_bytes(layer, layer + 1)
        n_entries = max(1, PIECE_BYTES // entry_bytes)
        for start in range(chunk.start, chunk.stop, n_entries):
            stop = min(start + n_entries, chunk.stop)
            packed = None
            if self.outlet.has_room((stop - start) * entry_bytes):
                packed = self.model.pack([(chunk.slot, start, stop)], layer, layer + 1)
            self._put(chunk, chunk.to, layers, start, stop, packed)

    def _put(
        self, item: Ship | Chunk, to: int, layers: Span, start: int, stop: int, packed: Any
    ) -> None:
        assert self.outlet is not None, "a stage that ships has an outlet"
        self.outlet.put(
            Cargo(
                slot=item.slot,
                seq=item.seq,
                epoch=item.epoch,
                to=to,
                target=item.target,
                first=layers.start,
                last=layers.stop,
                start=start,
                stop=stop,
                packed=packed,
            )
        )

    def _seal(self, item: Ship | Chunk, to: int, length: int) -> None:
        assert self.outlet is not None, "a stage that ships has an outlet"
        self.outlet.put(
            Sealed(
                seq=item.seq,
                epoch=item.epoch,
                to=to,
                target=item.target,
                first=self.span.start,
                last=self.span.stop,
                length=length,
            )
        )

    # Drawing.

    def _finish(self, step: Step, hidden: list[Hidden]) -> Executed:
        decoded: list[SampledToken | DrawFailed] = []
        drawing = [item for item in step.decodes if item.draw]
        if drawing:
            rows = [self._row(step, item.slot) for item in drawing]
            for item, logits in zip(
                drawing, self.model.decode_logits(hidden[0], rows), strict=True
            ):
                decoded.append(self._drawings.draw(item.slot, item.position + 1, logits))
        first_chunk = bool(step.decodes)
        firsts = [
            self._firsts(chunk, hidden[first_chunk + i])
            for i, chunk in enumerate(step.chunks)
            if chunk.draws
        ]
        return Executed(decoded=tuple(decoded), firsts=tuple(firsts))

    def _firsts(self, chunk: Chunk, hidden: Hidden) -> tuple[SampledToken | DrawFailed, ...]:
        logits = self.model.chunk_logits(hidden, len(chunk.tokens))
        draw: Callable[..., Any] = self._drawings.draw
        return tuple(draw(chunk.slot, chunk.stop, logits, sample) for sample in chunk.draws)


def _in_host_memory(hidden: Hidden) -> Hidden:
    """Messages carry host memory; what is on a device is copied here, not on the loop's turn."""
    return hidden.cpu() if Region.of(hidden).kind is MemoryKind.CUDA else hidden
