"""What the loss of a stage means for the logs, and how they come back.

A log resumes at the largest position that all stages can offer; what is missing is computed again
from the known tokens.
"""

from __future__ import annotations

from dvrt.control.book import Book
from dvrt.control.events import Command, LogArrived, Place, Restore, Rewind, Wanted
from dvrt.control.fleet import Fleet
from dvrt.control.pipeline import LINK, Pipeline, Purpose
from dvrt.control.seating import Seating, wanted_of
from dvrt.control.sequence import Sequence

SEAT_LEASE_S = 10.0
"""How long rows stay set aside for prompts whose pipeline has lost a stage."""
TRANSFER_LIMIT_S = 10.0
"""A log that has been sent and has not arrived after this time is sent again."""


class Recovery:
    """Rolls logs back when a stage is lost, and has them go on when their entries are there."""

    def __init__(self, fleet: Fleet, book: Book, seating: Seating) -> None:
        self._fleet = fleet
        self._book = book
        self._seating = seating
        self.n_recomputed = 0
        self.n_restored = 0
        self.n_refused = 0

    def lost(self, pipeline: Pipeline, stage: int, now: float) -> list[Command]:
        """Steps in flight are void. What is on its way to other rows may arrive all the same."""
        pipeline.lose(stage, now)
        for sequence in pipeline.sitting():
            sequence.awaits.pop(stage, None)
        return [Rewind(pipeline=pipeline.id, below=self._fleet.next_step_id)]

    def steps_lost(self, pipeline: Pipeline, now: float) -> list[Command]:
        """Steps in flight are void; every stage still has what finished ones account for."""
        pipeline.lose(LINK, now)
        return [Rewind(pipeline=pipeline.id, below=self._fleet.next_step_id)]

    def rewound(self, pipeline: Pipeline, now: float) -> list[Command]:
        """No void step can touch a slot any more."""
        if LINK not in pipeline.missing:
            return []
        pipeline.regain(LINK)
        return self._resume_all(pipeline, now)

    def ready(self, pipeline: Pipeline, stage: int, now: float) -> list[Command]:
        """The replacement gets back what can be had of each log."""
        if stage not in pipeline.missing:
            return []
        pipeline.regain(stage)
        for sequence in pipeline.expected():
            sequence.must_reship |= sequence.n_shipped > 0
            sequence.arrived.clear()
        wanted: list[Wanted] = []
        for sequence in pipeline.sitting():
            if sequence.n_done:
                ticket = sequence.awaits[stage] = self._fleet.next_epoch()
                wanted.append(wanted_of(sequence, ticket))
        commands: list[Command] = []
        if wanted:
            commands.append(Restore(pipeline=pipeline.id, stage=stage, logs=tuple(wanted)))
        return commands + self._resume_all(pipeline, now)

    def arrived(self, event: LogArrived) -> list[Command]:
        """A log has come to where it is going, or back to a stage that had lost it."""
        sequence = self._book.find(event.seq)
        if sequence is None:
            return []
        if sequence.awaits.get(event.stage) == event.epoch and _is_at(sequence.seat, event):
            return self._restored(sequence, event)
        if sequence.epoch == event.epoch and _is_at(sequence.target, event):
            self._shipped(sequence, event)
            return self.move_if_there(sequence, event.now)
        return []

    def move_if_there(self, sequence: Sequence, now: float) -> list[Command]:
        """Go on at the row set aside once every stage there has the log and a token is to come."""
        if sequence.target is None or sequence.must_reship or sequence.is_in_prompt:
            return []
        target = self._fleet[sequence.target.pipeline]
        is_there = len(sequence.arrived) == target.shape.n_stages
        if not (is_there and target.is_whole and sequence.n_logged < len(sequence.tokens)):
            return []
        self._fleet.move(sequence)
        return self._seating.entered(sequence, Place.TOKEN, now)

    def sent(self, sequence: Sequence, now: float) -> None:
        """A step that sent the last of a log is done: it should arrive soon."""
        if sequence.target is not None:
            sequence.due = now + TRANSFER_LIMIT_S

    def reclaim(self, now: float) -> None:
        """Send again what did not arrive; take back rows set aside for prompts that stand still."""
        for sequence in self._book:
            if sequence.due is not None and sequence.due <= now:
                sequence.due = None
                sequence.must_reship = sequence.target is not None
        for pipeline in self._fleet:
            end = self._lease_end(pipeline)
            if end is not None and end <= now:
                for sequence in pipeline.sitting():
                    self._fleet.take_back(sequence)

    def next_deadline(self) -> float | None:
        ends = [self._lease_end(pipeline) for pipeline in self._fleet]
        ends += [sequence.due for sequence in self._book]
        return min((end for end in ends if end is not None), default=None)

    def _lease_end(self, pipeline: Pipeline) -> float | None:
        """When rows set aside for the pipeline's prompts fall back; None if there are none."""
        if pipeline.broken_since is None or pipeline.purpose is not Purpose.PROMPT:
            return None
        if all(sequence.target is None for sequence in pipeline.sitting()):
            return None
        return pipeline.broken_since + SEAT_LEASE_S

    def _restored(self, sequence: Sequence, event: LogArrived) -> list[Command]:
        del sequence.awaits[event.stage]
        held = sequence.n_held
        sequence.n_held = event.length if held is None else min(held, event.length)
        self.n_restored += event.length
        home = self._fleet[event.pipeline]
        if sequence.awaits or not home.is_whole:
            return []
        return self._resume(sequence, home, event.now)

    def _shipped(self, sequence: Sequence, event: LogArrived) -> None:
        if event.length == sequence.n_shipped:
            sequence.arrived.add(event.stage)
        elif event.length == 0:
            self.n_refused += 1
            sequence.must_reship = True

    def _resume_all(self, pipeline: Pipeline, now: float) -> list[Command]:
        """The pipeline is whole again: those who wait for nothing more go on."""
        commands: list[Command] = []
        if pipeline.is_whole:
            for sequence in list(pipeline.sitting()):
                if not sequence.awaits:
                    commands += self._resume(sequence, pipeline, now)
        return commands

    def _resume(self, sequence: Sequence, home: Pipeline, now: float) -> list[Command]:
        held = sequence.n_done if sequence.n_held is None else sequence.n_held
        length = min(sequence.n_done, held, len(sequence.tokens) - 1)
        if length < sequence.n_prompt:
            length -= length % home.shape.chunk_tokens
        self.n_recomputed += sequence.n_logged - length
        if not home.shape.repeats:
            sequence.prefill_known()
        if home.purpose is Purpose.TOKEN and length < sequence.n_prompt:
            self._fleet.leave(sequence)
            self._book.wait_first([sequence])
            return self._seating.entered(sequence, Place.QUEUE, now)
        sequence.resume(length, self._fleet.next_epoch())
        return []


def _is_at(seat: tuple[int, int] | None, event: LogArrived) -> bool:
    return seat == (event.pipeline, event.slot)
