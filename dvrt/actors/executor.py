"""Applies steps to one stage: checks the log's rules, runs the model, draws tokens at the end.

Synchronous; runs on the stage's compute thread and is the only one that touches the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dvrt.control.steps import Chunk, Decode, DrawFailed, Step
from dvrt.errors import DvrtError, ProtocolError
from dvrt.kv.log import LogTable
from dvrt.requests import SampledToken, SamplingParams

Hidden = Any
"""A stage's hidden states of one call: whatever the model takes and Region.of accepts."""

Draw = Callable[[Any, SamplingParams, int, int, Sequence[int]], SampledToken]
"""(logits of one position, params, sample, position of the new token, context ids) -> token."""


class StageModel(Protocol):
    """The layers of one stage and their KV arena, as the executor drives them.

    ``inputs`` are token ids at the first stage and received hidden states (bytes-like) later on.
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

    def chunk(self, slot: int, start: int, n_tokens: int, inputs: Any) -> Hidden:
        """Extend one log by the positions [start, start + n_tokens)."""
        ...

    def decode_logits(self, hidden: Hidden, rows: Sequence[int]) -> Any:
        """``[len(rows), vocabulary]`` of these rows of a decode's result (last stage)."""
        ...

    def chunk_logits(self, hidden: Hidden, n_tokens: int) -> Any:
        """``[vocabulary]`` behind the chunk's last position (last stage)."""
        ...

    def fork(self, source: int, target: int, n_tokens: int) -> None: ...
    def scrub(self, slot: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What a step gave: hidden states for the next stage, or the drawn tokens at the last one."""

    hidden: tuple[Hidden, ...] = ()
    decoded: tuple[SampledToken | DrawFailed, ...] = ()
    firsts: tuple[tuple[SampledToken | DrawFailed, ...], ...] = ()


@dataclass(slots=True)
class _Drawing:
    """What drawing for a slot needs; ``context`` is kept only where a penalty looks at it."""

    sampling: SamplingParams
    sample: int
    context: list[int]

    @property
    def needs_context(self) -> bool:
        return self.sampling.repetition_penalty != 1.0


class StageExecutor:
    """One stage's state: the model with its arena, the table of logs, the drawing at the end."""

    def __init__(
        self,
        model: StageModel,
        *,
        n_slots: int,
        batch_size: int,
        max_context: int,
        is_first: bool,
        draw: Draw | None,
    ) -> None:
        """``draw`` is given at the last stage, and only there."""
        self.model = model
        self.logs = LogTable(n_slots, max_context)
        self._batch_size = batch_size
        self._is_first = is_first
        self._draw = draw
        self._drawing: dict[int, _Drawing] = {}

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
        return self._finish(step, hidden)

    def _begin(self, step: Step) -> None:
        for slot in step.scrubs:
            self.model.scrub(slot)
        for item in step.opens:
            self.logs.open(item.slot, seq=item.seq, epoch=item.epoch)
            self._drawing[item.slot] = _Drawing(item.sampling, item.sample, [])
        for fork in step.forks:
            self.logs.fork(
                fork.source, fork.target, seq=fork.seq, epoch=fork.epoch, length=fork.n_tokens
            )
            if fork.source != fork.target:
                self.model.fork(fork.source, fork.target, fork.n_tokens)
            self._drawing[fork.target] = _Drawing(
                fork.sampling, fork.sample, list(fork.context_ids)
            )

    def _decode(self, step: Step, received: bytearray | None) -> Hidden:
        positions, tokens = [-1] * self._batch_size, [0] * self._batch_size
        for item in step.decodes:
            stop = item.position + 1
            self.logs.extend(
                item.slot, seq=item.seq, epoch=item.epoch, start=item.position, stop=stop
            )
            row = self._row(step, item)
            positions[row], tokens[row] = item.position, item.token
            self._remember(item.slot, (item.token,))
        return self.model.decode(
            step.microbatch, positions, tokens if received is None else received
        )

    def _chunk(self, chunk: Chunk, received: bytearray | None) -> Hidden:
        self.logs.extend(
            chunk.slot, seq=chunk.seq, epoch=chunk.epoch, start=chunk.start, stop=chunk.stop
        )
        self._remember(chunk.slot, chunk.tokens)
        inputs = chunk.tokens if received is None else received
        return self.model.chunk(chunk.slot, chunk.start, len(chunk.tokens), inputs)

    def _row(self, step: Step, item: Decode) -> int:
        microbatch, row = divmod(item.slot, self._batch_size)
        if microbatch != step.microbatch:
            raise ProtocolError(f"step {step.id} of microbatch {step.microbatch} names {item}")
        return row

    def _remember(self, slot: int, tokens: Sequence[int]) -> None:
        drawing = self._drawing[slot]
        if drawing.needs_context:
            drawing.context.extend(tokens)

    def _finish(self, step: Step, hidden: list[Hidden]) -> Executed:
        if self._draw is None:
            return Executed(hidden=tuple(hidden))
        decoded: list[SampledToken | DrawFailed] = []
        drawing = [item for item in step.decodes if item.draw]
        if drawing:
            rows = [self._row(step, item) for item in drawing]
            for item, logits in zip(
                drawing, self.model.decode_logits(hidden[0], rows), strict=True
            ):
                decoded.append(self._drawn(item.slot, item.position + 1, logits))
        first_chunk = bool(step.decodes)
        firsts = [
            self._firsts(chunk, hidden[first_chunk + i])
            for i, chunk in enumerate(step.chunks)
            if chunk.draws
        ]
        return Executed(decoded=tuple(decoded), firsts=tuple(firsts))

    def _firsts(self, chunk: Chunk, hidden: Hidden) -> tuple[SampledToken | DrawFailed, ...]:
        logits = self.model.chunk_logits(hidden, len(chunk.tokens))
        return tuple(self._drawn(chunk.slot, chunk.stop, logits, n) for n in chunk.draws)

    def _drawn(
        self, slot: int, position: int, logits: Any, sample: int | None = None
    ) -> SampledToken | DrawFailed:
        assert self._draw is not None
        drawing = self._drawing[slot]
        chosen = drawing.sample if sample is None else sample
        try:
            return self._draw(logits, drawing.sampling, chosen, position, drawing.context)
        except DvrtError as error:  # non-finite logits: this row's fault, not the step's
            return DrawFailed(reason=str(error))
