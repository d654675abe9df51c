"""All pipelines of a cluster: seats given, set aside, left and exchanged; ids of steps and epochs.

Knows where sequences sit; knows nothing of clients, queues or time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dvrt.control.pipeline import Pipeline, PipelinePlan
from dvrt.control.sequence import Seat, Sequence
from dvrt.control.steps import Step


class Fleet:
    """The pipelines by id, in the order in which they came."""

    def __init__(self, plans: Iterable[PipelinePlan], first_number: int = 0) -> None:
        self._pipelines = {plan.id: Pipeline(plan) for plan in plans}
        self._next_step = first_number
        self._epoch = first_number

    def __iter__(self) -> Iterator[Pipeline]:
        return iter(list(self._pipelines.values()))

    def __len__(self) -> int:
        return len(self._pipelines)

    def __getitem__(self, pipeline: int) -> Pipeline:
        return self._pipelines[pipeline]

    def __repr__(self) -> str:
        return f"<Fleet {list(self._pipelines.values())}>"

    def get(self, pipeline: int) -> Pipeline | None:
        return self._pipelines.get(pipeline)

    @property
    def next_step_id(self) -> int:
        """Every step so far has a smaller id."""
        return self._next_step

    @property
    def n_free_rows(self) -> int:
        """How many sequences more could begin now: rows for their prompts, and for their tokens."""
        whole = [each for each in self._pipelines.values() if each.is_whole]
        for_prompts = sum(each.n_free for each in whole if each.takes_prompts)
        for_tokens = sum(each.n_free for each in whole if each.takes_tokens)
        return min(for_prompts, for_tokens)

    def next_epoch(self) -> int:
        """Larger than every epoch before: the later of two owners of a slot has the larger one."""
        self._epoch += 1
        return self._epoch

    def home_of(self, sequence: Sequence) -> Pipeline | None:
        """The pipeline that it sits in."""
        return None if sequence.seat is None else self._pipelines[sequence.seat.pipeline]

    def sit(
        self, sequence: Sequence, pipeline: Pipeline, slot: int, fork_source: int | None = None
    ) -> None:
        pipeline.give(slot, sequence)
        sequence.sit(Seat(pipeline.id, slot), self.next_epoch(), fork_source)

    def set_aside(self, sequence: Sequence) -> bool:
        """Give it a row where tokens are made, for its log to be sent to; False: none is free."""
        for pipeline in self._pipelines.values():
            if not (pipeline.takes_tokens and pipeline.is_whole):
                continue
            slot = pipeline.place_for_one()
            if slot is not None:
                pipeline.give(slot, sequence)
                sequence.head_for(Seat(pipeline.id, slot))
                return True
        return False

    def move(self, sequence: Sequence) -> Pipeline:
        """Its log has arrived: it leaves its row and goes on at the one set aside."""
        seat, target = sequence.seat, sequence.target
        assert seat is not None
        assert target is not None
        self._pipelines[seat.pipeline].free(seat.slot)
        sequence.move()
        return self._pipelines[target.pipeline]

    def take_back(self, sequence: Sequence) -> None:
        """Free the row that was set aside for it."""
        target = sequence.stay()
        if target is not None:
            self._pipelines[target.pipeline].free(target.slot)

    def leave(self, sequence: Sequence) -> None:
        """Free all rows that it has; its tokens remain."""
        self.take_back(sequence)
        if sequence.seat is not None:
            self._pipelines[sequence.seat.pipeline].free(sequence.seat.slot)
        sequence.unseat(self.next_epoch())

    def poison(self, sequence: Sequence) -> None:
        """Its rows may hold non-finite values."""
        for seat in (sequence.seat, sequence.target):
            if seat is not None:
                self._pipelines[seat.pipeline].poison(seat.slot)

    def hand_over(self, sequence: Sequence, heir: Sequence) -> None:
        """``heir`` takes the rows of a sibling that ends, with the prompt's entries in them."""
        heir.inherit(sequence, self.next_epoch())
        for seat in (sequence.seat, sequence.target):
            if seat is not None:
                self._pipelines[seat.pipeline].replace(seat.slot, heir)
        sequence.seat = sequence.target = None

    def launch(self, pipeline: Pipeline, microbatch: int) -> Step | None:
        """The next step of an idle microbatch; None if it has no work or stages are missing."""
        if not pipeline.is_whole:
            return None
        step = pipeline.next_step(microbatch, step_id=self._next_step, next_epoch=self.next_epoch)
        self._next_step += step is not None
        return step

    def replace(self, plans: Iterable[PipelinePlan]) -> None:
        """New pipelines take over; the present ones retire."""
        for pipeline in self._pipelines.values():
            pipeline.is_retiring = True
        for plan in plans:
            assert plan.id not in self._pipelines, f"pipeline {plan.id} is there already"
            self._pipelines[plan.id] = Pipeline(plan)

    def drop_retired(self) -> list[int]:
        """Forget retiring pipelines that nobody needs any more; their ids."""
        done = [
            pipeline.id
            for pipeline in self._pipelines.values()
            if pipeline.is_retiring and not (pipeline.n_taken or pipeline.n_in_flight)
        ]
        for pipeline_id in done:
            del self._pipelines[pipeline_id]
        return done
