"""The scheduler: takes events, returns commands; no clock, no socket, no device.

A request waits in one queue, gets a row, has its prompt computed in chunks, then one decode a
step. Rows come and go at every step: a finished row is refilled by the very step that follows.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dvrt.control.events import (
    Admitted,
    Cancel,
    Command,
    Emit,
    Event,
    Reject,
    RunStep,
    StepFinished,
    Submit,
    Tick,
)
from dvrt.control.group import Group
from dvrt.control.pipeline import Pipeline, PipelineShape
from dvrt.control.sequence import Sequence
from dvrt.control.steps import DrawFailed, Fork, Open, Step, StepDone
from dvrt.errors import Overloaded, RequestRejected
from dvrt.requests import FinishReason, Request, SampledToken


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for: ``max_context`` counts prompt and generated tokens together."""

    max_context: int
    vocab_size: int
    max_queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    n_queued: int
    n_running: int
    n_rows: int
    n_in_flight: int
    n_requests: int


class Scheduler:
    """All requests of one cluster and the pipeline that serves them."""

    def __init__(self, shape: PipelineShape, limits: Limits) -> None:
        self._pipeline = Pipeline(shape)
        self._limits = limits
        self._groups: dict[str, Group] = {}
        self._sequences: dict[int, Sequence] = {}
        self._queue: deque[Sequence] = deque()
        self._next_sequence = 0
        self._finishes: deque[float] = deque(maxlen=64)

    def __repr__(self) -> str:
        return (
            f"<Scheduler {len(self._groups)} requests, {len(self._queue)} wait, {self._pipeline}>"
        )

    def handle(self, event: Event) -> list[Command]:
        """The commands that follow from an event, in the order in which to carry them out."""
        match event:
            case Submit(request=request, now=now):
                return self._submit(request, now)
            case Cancel():
                return self._cancel(event)
            case StepFinished(done=done, now=now):
                return self._step_finished(done, now)
            case Tick(now=now):
                return self._expire(now)

    def statistics(self) -> SchedulerStatistics:
        return SchedulerStatistics(
            n_queued=len(self._queue),
            n_running=self._pipeline.n_occupied,
            n_rows=self._pipeline.shape.n_slots,
            n_in_flight=self._pipeline.n_in_flight,
            n_requests=len(self._groups),
        )

    def next_deadline(self) -> float | None:
        """When the next Tick is needed; None if no request has a deadline."""
        return min(
            (g.deadline for g in self._groups.values() if g.deadline is not None), default=None
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if rows, queue and requests do not account for each other."""
        seated = {s.id for s in self._pipeline.sequences()}
        queued = {s.id for s in self._queue}
        live = {s.id for group in self._groups.values() for s in group.live.values()}
        assert not seated & queued, f"{seated & queued} sit and wait at once"
        assert seated | queued == live == set(self._sequences), (seated, queued, live)
        for sequence in self._pipeline.sequences():
            assert sequence.n_logged <= len(sequence.tokens), repr(sequence)

    def _submit(self, request: Request, now: float) -> list[Command]:
        error = self._refusal(request, now)
        if error is not None:
            return [Reject(request_id=request.id, error=error)]
        first = self._new_sequence(request, sample=0)
        self._groups[request.id] = Group(request, first, now)
        self._queue.append(first)
        return self._launch_idle(now)

    def _refusal(self, request: Request, now: float) -> RequestRejected | None:
        limits, n_prompt = self._limits, len(request.prompt_ids)
        if request.id in self._groups:
            return RequestRejected(f"request {request.id!r} is already running", param="request_id")
        if n_prompt + request.max_tokens > limits.max_context:
            return RequestRejected(
                f"the context is {limits.max_context} tokens; the prompt has {n_prompt} and"
                f" {request.max_tokens} more were asked for",
                param="prompt" if n_prompt >= limits.max_context else "max_tokens",
                code="context_length_exceeded",
            )
        bad = [i for i in request.prompt_ids if not 0 <= i < limits.vocab_size]
        if bad:
            return RequestRejected(
                f"token id {bad[0]} is outside the vocabulary [0, {limits.vocab_size})",
                param="prompt",
            )
        if len(self._queue) >= limits.max_queue:
            return Overloaded(
                f"{len(self._queue)} requests wait already; the limit is {limits.max_queue}",
                retry_after_s=self._retry_after_s(now),
            )
        return None

    def _retry_after_s(self, now: float) -> float:
        """The time in which, at the recent rate, a tenth of the queue will have been served."""
        if len(self._finishes) < 2:
            return 1.0
        interval = (now - self._finishes[0]) / len(self._finishes)
        return min(60.0, max(1.0, interval * len(self._queue) / 10))

    def _new_sequence(self, request: Request, sample: int) -> Sequence:
        sequence = Sequence(self._next_sequence, request, sample)
        self._next_sequence += 1
        self._sequences[sequence.id] = sequence
        return sequence

    def _launch_idle(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for microbatch in range(self._pipeline.shape.n_microbatches):
            if self._pipeline.is_idle(microbatch):
                commands += self._launch(microbatch, now)
        return commands

    def _launch(self, microbatch: int, now: float) -> list[Command]:
        """Refill the rows of an idle microbatch and send its next step, if it has any work."""
        opens, forks, commands = self._refill(microbatch, now)
        step = self._pipeline.next_step(microbatch, opens, forks)
        if step is not None:
            commands.append(RunStep(step=step))
        return commands

    def _refill(self, microbatch: int, now: float) -> tuple[list[Open], list[Fork], list[Command]]:
        opens: list[Open] = []
        forks: list[Fork] = []
        commands: list[Command] = []
        if not self._queue:
            return opens, forks, commands
        n_take = self._pipeline.may_take(microbatch, len(self._queue))
        for slot in self._pipeline.free_slots(microbatch)[:n_take]:
            if not self._queue:
                break
            sequence = self._queue.popleft()
            group = self._groups[sequence.request.id]
            holder = group.holder
            self._pipeline.seat(sequence, slot)
            if holder is not None and holder.slot is not None:
                forks.append(sequence.fork(holder.slot, slot))
            else:
                opens.append(sequence.open(slot))
            if not group.is_admitted:
                group.is_admitted = True
                commands.append(Admitted(request_id=group.request.id, now=now))
        return opens, forks, commands

    def _step_finished(self, done: StepDone, now: float) -> list[Command]:
        step = self._pipeline.finish(done.id, done.microbatch)
        if step is None:
            return []
        commands = self._take_results(step, done, now)
        commands += self._launch(done.microbatch, now)
        if self._queue:
            commands += self._launch_idle(now)
        return commands

    def _take_results(self, step: Step, done: StepDone, now: float) -> list[Command]:
        commands: list[Command] = []
        drawing = [decode for decode in step.decodes if decode.draw]
        for decode, drawn in zip(drawing, done.decoded, strict=True):
            sequence = self._sequences.get(decode.seq)
            if sequence is not None:
                commands += self._take_token(sequence, drawn, now)
        prompts = [chunk for chunk in step.chunks if chunk.draws]
        for chunk, firsts in zip(prompts, done.firsts, strict=True):
            commands += self._take_firsts(chunk.seq, firsts, now)
        return commands

    def _take_firsts(
        self, seq: int, firsts: tuple[SampledToken | DrawFailed, ...], now: float
    ) -> list[Command]:
        """The first tokens of all samples of a prompt; the further samples come to life here."""
        first = self._sequences.get(seq)
        if first is None:
            return []
        group = self._groups[first.request.id]
        siblings = [self._new_sequence(first.request, i) for i in range(1, len(firsts))]
        group.live.update({s.sample: s for s in siblings})
        self._queue.extendleft(reversed(siblings))
        commands: list[Command] = []
        for sequence, drawn in zip([first, *siblings], firsts, strict=True):
            commands += self._take_token(sequence, drawn, now)
        return commands

    def _take_token(
        self, sequence: Sequence, drawn: SampledToken | DrawFailed, now: float
    ) -> list[Command]:
        if isinstance(drawn, DrawFailed):
            if sequence.slot is not None:
                self._pipeline.poison(sequence.slot)
            return self._end(sequence, FinishReason.ERROR, now, error=drawn.reason)
        index = sequence.n_generated
        finish = sequence.append(drawn.id)
        if finish is not None:
            self._forget(sequence, now)
        emit = Emit(
            request_id=sequence.request.id,
            sample=sequence.sample,
            index=index,
            token=drawn,
            finish=finish,
        )
        return [emit]

    def _cancel(self, event: Cancel) -> list[Command]:
        group = self._groups.get(event.request_id)
        if group is None:
            return []
        chosen = [s for s in group.live.values() if event.sample in (None, s.sample)]
        return [emit for s in chosen for emit in self._end(s, event.reason, event.now)]

    def _expire(self, now: float) -> list[Command]:
        late = [g for g in self._groups.values() if g.deadline is not None and g.deadline <= now]
        return [
            emit
            for group in late
            for sequence in list(group.live.values())
            for emit in self._end(sequence, FinishReason.DEADLINE, now)
        ]

    def _end(
        self, sequence: Sequence, reason: FinishReason, now: float, error: str | None = None
    ) -> list[Command]:
        """End a sample without another token, and with it those that it has yet to bring forth."""
        samples = (sequence.sample, *self._groups[sequence.request.id].unborn)
        self._forget(sequence, now)
        return [
            Emit(
                request_id=sequence.request.id,
                sample=sample,
                index=sequence.n_generated,
                token=None,
                finish=reason,
                error=error,
            )
            for sample in samples
        ]

    def _forget(self, sequence: Sequence, now: float) -> None:
        """Free all that an ended sample holds; its row goes to a sibling that needs the prompt."""
        group = self._groups[sequence.request.id]
        was_holder = group.holder is sequence
        del group.live[sequence.sample], self._sequences[sequence.id]
        if sequence.slot is None:
            self._queue.remove(sequence)
        slot = self._pipeline.leave(sequence)
        if was_holder and slot is not None and group.holder is None and group.waiting:
            heir = group.waiting[0]
            self._queue.remove(heir)
            self._pipeline.inherit(heir, slot)
        if not group.live:
            del self._groups[group.request.id]
            self._finishes.append(now)
