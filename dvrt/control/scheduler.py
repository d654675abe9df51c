"""The scheduler: takes events, returns commands; no clock, no socket, no device.

A request waits in one queue, gets a row, has its prompt computed in chunks, then one decode a
step. Rows come and go at every step: a finished row is refilled by the very step that follows.
Where prompts have a pipeline of their own, a row for the tokens is set aside before the prompt
begins, and the sequence moves there when its log has arrived.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dvrt.control.admission import Admission, Limits
from dvrt.control.book import Book
from dvrt.control.events import (
    Cancel,
    Command,
    Emit,
    Event,
    LogArrived,
    Place,
    Rebalance,
    Reject,
    Retired,
    Rewound,
    RunStep,
    StageLost,
    StageReady,
    StepFinished,
    StepsLost,
    Submit,
    Tick,
)
from dvrt.control.fleet import Fleet
from dvrt.control.pipeline import Pipeline, PipelinePlan, Purpose
from dvrt.control.recovery import Recovery
from dvrt.control.seating import Seating
from dvrt.control.sequence import Sequence
from dvrt.control.steps import DrawFailed, Step, StepDone
from dvrt.requests import FinishReason, SampledToken

__all__ = ["Limits", "Scheduler", "SchedulerStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """``n_moving`` samples are on their way to another pipeline.

    Since the start: positions computed again after a loss, positions that came back from replicas
    (counted for each stage that got them), logs that came damaged and were sent again.
    """

    n_queued: int
    n_running: int
    n_rows: int
    n_in_flight: int
    n_requests: int
    n_moving: int
    recomputed_tokens: int
    restored_tokens: int
    n_refused: int


class Scheduler:
    """All requests of one cluster and the pipelines that serve them."""

    def __init__(
        self, pipelines: Iterable[PipelinePlan], limits: Limits, *, first_number: int = 0
    ) -> None:
        """Ids of steps and sequences, and epochs, begin at ``first_number``: above those of all
        earlier lives."""
        self._fleet = Fleet(pipelines, first_number)
        self._book = Book(first_number)
        self._admission = Admission(limits, self._book, self._fleet)
        self._seating = Seating(self._fleet, self._book)
        self._recovery = Recovery(self._fleet, self._book, self._seating)

    def __repr__(self) -> str:
        n_queued = len(self._book.queue)
        return f"<Scheduler {len(self._book.groups)} requests, {n_queued} wait, {self._fleet}>"

    def handle(self, event: Event) -> list[Command]:
        """The commands that follow from an event, in the order in which to carry them out."""
        commands = self._handle(event)
        commands += [Retired(pipeline=each) for each in self._fleet.drop_retired()]
        return commands

    def statistics(self) -> SchedulerStatistics:
        pipelines = list(self._fleet)
        return SchedulerStatistics(
            n_queued=len(self._book.queue),
            n_running=sum(each.seat is not None for each in self._book),
            n_rows=sum(p.shape.n_slots for p in pipelines if p.takes_tokens),
            n_in_flight=sum(p.n_in_flight for p in pipelines),
            n_requests=len(self._book.groups),
            n_moving=sum(each.target is not None for each in self._book),
            recomputed_tokens=self._recovery.n_recomputed,
            restored_tokens=self._recovery.n_restored,
            n_refused=self._recovery.n_refused,
        )

    def sequences_of(self, request_id: str) -> dict[int, int]:
        """The ids of a request's live sequences, by sample."""
        group = self._book.groups.get(request_id)
        return {} if group is None else {n: each.id for n, each in group.live.items()}

    def pipeline_of(self, seq: int) -> int | None:
        """The pipeline in which a live sequence has its row, if it has one."""
        sequence = self._book.find(seq)
        return None if sequence is None or sequence.seat is None else sequence.seat.pipeline

    def next_deadline(self) -> float | None:
        """When the next Tick is needed; None if nothing has a deadline."""
        ends = [g.deadline for g in self._book.groups.values() if g.deadline is not None]
        lease = self._recovery.next_deadline()
        return min(ends if lease is None else [*ends, lease], default=None)

    def check_integrity(self) -> None:
        """Raise AssertionError if rows, queue and requests do not account for each other."""
        live = {s.id for group in self._book.groups.values() for s in group.live.values()}
        queued = {s.id for s in self._book.queue}
        seated = {s.id for pipeline in self._fleet for s in pipeline.sitting()}
        assert not seated & queued, f"{seated & queued} sit and wait at once"
        assert seated | queued == live == {s.id for s in self._book}, (seated, queued, live)
        for pipeline in self._fleet:
            n_known = sum(1 for _ in pipeline.sitting()) + sum(1 for _ in pipeline.expected())
            assert pipeline.n_taken == n_known, f"{pipeline}: rows without an owner"
        for sequence in self._book:
            assert sequence.n_done <= sequence.n_logged <= len(sequence.tokens), repr(sequence)

    def _handle(self, event: Event) -> list[Command]:
        match event:
            case Submit():
                return self._submit(event)
            case Cancel(now=now):
                return self._cancel(event) + self._launch_idle(now)
            case StepFinished(done=done, now=now):
                return self._step_finished(done, now)
            case Tick(now=now):
                self._recovery.reclaim(now)
                return self._expire(now) + self._launch_idle(now)
            case LogArrived(now=now):
                return self._recovery.arrived(event) + self._launch_idle(now)
            case StageLost() | StepsLost():
                return self._recover(event)
            case Rewound(now=now) | StageReady(now=now):
                return self._recover(event) + self._launch_idle(now)
            case Rebalance(pipelines=plans, now=now):
                self._fleet.replace(plans)
                return self._launch_idle(now)

    def _recover(self, event: StageLost | StepsLost | Rewound | StageReady) -> list[Command]:
        """What follows for the rows of a pipeline, if it is not closed by now."""
        home, now = self._fleet.get(event.pipeline), event.now
        if home is None:
            return []
        match event:
            case StageLost(stage=stage):
                return self._recovery.lost(home, stage, now)
            case StepsLost():
                return self._recovery.steps_lost(home, now)
            case Rewound():
                return self._recovery.rewound(home, now)
            case StageReady(stage=stage):
                return self._recovery.ready(home, stage, now)

    def _submit(self, event: Submit) -> list[Command]:
        request, now = event.request, event.now
        error = self._admission.refusal(request, now, is_known=event.age_s is not None)
        if error is not None:
            return [Reject(request_id=request.id, error=error)]
        group = self._book.add_group(request, now - (event.age_s or 0.0))
        if not event.known:
            self._book.queue.append(self._book.add_sample(group, 0))
            return self._launch_idle(now)
        commands: list[Command] = []
        for sample, known in enumerate(event.known):
            if known is not None:
                sequence = self._book.add_known(group, sample, known)
                self._book.queue.append(sequence)
                if known.seat is not None:
                    commands += self._seating.return_to(sequence, known.seat, now)
        return commands + self._launch_idle(now)

    def _launch_idle(self, now: float) -> list[Command]:
        return [
            command
            for pipeline in self._fleet
            for microbatch in range(pipeline.shape.n_microbatches)
            if pipeline.is_idle(microbatch)
            for command in self._launch(pipeline, microbatch, now)
        ]

    def _launch(self, pipeline: Pipeline, microbatch: int, now: float) -> list[Command]:
        """Refill the rows of an idle microbatch and send its next step, if it has any work."""
        commands = self._seating.fill(pipeline, microbatch, now)
        step = self._fleet.launch(pipeline, microbatch)
        if step is not None:
            commands.append(RunStep(step=step))
        return commands

    def _step_finished(self, done: StepDone, now: float) -> list[Command]:
        pipeline = self._fleet.get(done.pipeline)
        step = pipeline.finish(done.id, done.microbatch) if pipeline is not None else None
        if pipeline is None or step is None:
            return []
        self._count_logged(step, now)
        commands = self._take_results(step, done, now)
        commands += self._launch(pipeline, done.microbatch, now)
        if self._book.queue or len(self._fleet) > 1:
            commands += self._launch_idle(now)
        return commands

    def _count_logged(self, step: Step, now: float) -> None:
        """What the step appended is in every stage of its pipeline now."""
        reached = [(each.seq, each.epoch, each.n_tokens) for each in step.adopts]
        reached += [(each.seq, each.epoch, each.n_tokens) for each in step.forks]
        reached += [(each.seq, each.epoch, each.position + 1) for each in step.decodes]
        reached += [(each.seq, each.epoch, each.stop) for each in step.chunks]
        for seq, epoch, stop in reached:
            sequence = self._book.get(seq, epoch)
            if sequence is not None:
                sequence.n_done = max(sequence.n_done, stop)
        sent = [(each.seq, each.epoch) for each in step.ships if each.commits]
        sent += [(each.seq, each.epoch) for each in step.chunks if each.commits]
        for seq, epoch in sent:
            sequence = self._book.get(seq, epoch)
            if sequence is not None:
                self._recovery.sent(sequence, now)

    def _take_results(self, step: Step, done: StepDone, now: float) -> list[Command]:
        commands: list[Command] = []
        drawing = [decode for decode in step.decodes if decode.draw]
        for decode, drawn in zip(drawing, done.decoded, strict=True):
            sequence = self._book.get(decode.seq, decode.epoch)
            if sequence is not None:
                commands += self._take_token(sequence, drawn, now)
        prompts = [chunk for chunk in step.chunks if chunk.draws]
        for chunk, firsts in zip(prompts, done.firsts, strict=True):
            first = self._book.get(chunk.seq, chunk.epoch)
            if first is not None:
                commands += self._take_firsts(first, firsts, now)
        return commands

    def _take_firsts(
        self, first: Sequence, firsts: tuple[SampledToken | DrawFailed, ...], now: float
    ) -> list[Command]:
        """The first tokens of all samples of a prompt; the further samples come to life here."""
        group, home = self._book.group_of(first), self._fleet.home_of(first)
        is_apart = home is not None and home.purpose is Purpose.PROMPT
        siblings = [self._book.add_sample(group, sample) for sample in range(1, len(firsts))]
        self._book.wait_first(siblings)
        commands = self._seating.entered(first, Place.TRANSFER if is_apart else Place.TOKEN, now)
        for sequence, drawn in zip([first, *siblings], firsts, strict=True):
            commands += self._take_token(sequence, drawn, now)
        for sequence in group.seated:
            commands += self._recovery.move_if_there(sequence, now)
        return commands

    def _take_token(
        self, sequence: Sequence, drawn: SampledToken | DrawFailed, now: float
    ) -> list[Command]:
        if isinstance(drawn, DrawFailed):
            self._fleet.poison(sequence)
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
        group = self._book.groups.get(event.request_id)
        if group is None:
            return []
        chosen = [s for s in group.live.values() if event.sample in (None, s.sample)]
        return [emit for s in chosen for emit in self._end(s, event.reason, event.now)]

    def _expire(self, now: float) -> list[Command]:
        groups = self._book.groups.values()
        late = [g for g in groups if g.deadline is not None and g.deadline <= now]
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
        samples = (sequence.sample, *self._book.group_of(sequence).unborn)
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
        group = self._book.group_of(sequence)
        heir = self._heir(sequence)
        if heir is not None:
            self._fleet.hand_over(sequence, heir)
            self._book.queue.remove(heir)
        elif sequence.seat is not None:
            self._fleet.leave(sequence)
        else:
            self._book.queue.remove(sequence)
        self._book.forget(sequence)
        if not group.live:
            self._admission.ended(now)

    def _heir(self, sequence: Sequence) -> Sequence | None:
        """A sibling without a row, when this one's row is the only one with their prompt."""
        group, home = self._book.group_of(sequence), self._fleet.home_of(sequence)
        if home is None or sequence.seat is None or home.is_dirty(sequence.seat.slot):
            return None  # a row that is cleaned has nothing to inherit
        has_prompt = home.is_whole and sequence.is_settled
        is_only = group.seated == [sequence]
        return group.waiting[0] if has_prompt and is_only and group.waiting else None
