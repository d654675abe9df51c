"""The rows of one pipeline: who sits where, which microbatches are in flight, the next step.

Knows sequences and slots; knows nothing of clients, queues or other pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from dvrt.control.sequence import Seat, Sequence
from dvrt.control.steps import Adopt, Chunk, Fork, Open, Step

LINK = -1
"""What is missing while a broken link's steps may still be on their way; stages count from 0."""
FILLING = 4
"""So many times the usual prompt chunks go into a step while no row decodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShape:
    """``n_microbatches`` of ``batch_size`` rows over ``n_stages``.

    ``chunk_tokens`` is the length of a prompt chunk, ``chunks_per_step`` how many of them one step
    may carry beside its decodes: the bound on how long a prompt holds up the others. ``repeats``
    the same calls when it computes known tokens again, as exact mode must; else takes them in
    chunks.
    """

    n_stages: int
    n_microbatches: int
    batch_size: int
    chunk_tokens: int
    chunks_per_step: int
    repeats: bool = True

    def __post_init__(self) -> None:
        for name in ("n_stages", "n_microbatches", "batch_size", "chunk_tokens", "chunks_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")

    @property
    def n_slots(self) -> int:
        return self.n_microbatches * self.batch_size


class Purpose(StrEnum):
    """What a pipeline does: prompts, tokens, or both."""

    BOTH = "both"
    PROMPT = "prompt"
    TOKEN = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """A pipeline to be driven; ids are never used twice."""

    id: int
    purpose: Purpose
    shape: PipelineShape


class Pipeline:
    """Rows and steps in flight.

    A row is given to whoever sits in it, or set aside for a sequence whose log is on its way
    there. While stages are ``missing`` nothing is launched.
    """

    def __init__(self, plan: PipelinePlan) -> None:
        self.id, self.purpose, self.shape = plan.id, plan.purpose, plan.shape
        self.missing: set[int] = set()
        self.broken_since: float | None = None
        self.is_retiring = False
        self._rows: list[Sequence | None] = [None] * plan.shape.n_slots
        self._dirty: set[int] = set()
        self._in_flight: list[Step | None] = [None] * plan.shape.n_microbatches

    def __repr__(self) -> str:
        rows = [self._n_taken(m) for m in range(self.shape.n_microbatches)]
        flying = [m for m, step in enumerate(self._in_flight) if step is not None]
        return f"<Pipeline {self.id} {self.purpose} rows {rows} in flight {flying}>"

    @property
    def n_taken(self) -> int:
        """Rows that somebody sits in or that are set aside."""
        return sum(row is not None for row in self._rows)

    @property
    def n_free(self) -> int:
        return self._rows.count(None)

    @property
    def n_in_flight(self) -> int:
        return sum(step is not None for step in self._in_flight)

    @property
    def is_whole(self) -> bool:
        return not self.missing

    @property
    def takes_prompts(self) -> bool:
        return self.purpose is not Purpose.TOKEN and not self.is_retiring

    @property
    def takes_tokens(self) -> bool:
        return self.purpose is not Purpose.PROMPT and not self.is_retiring

    def sitting(self, microbatch: int | None = None) -> Iterator[Sequence]:
        """Those that sit here, in one microbatch or in all, in the order of their slots."""
        size = self.shape.batch_size
        slots = range(self.shape.n_slots)
        if microbatch is not None:
            slots = slots[microbatch * size : (microbatch + 1) * size]
        for slot in slots:
            row = self._rows[slot]
            if row is not None and row.seat == Seat(self.id, slot):
                yield row

    def expected(self) -> Iterator[Sequence]:
        """Those that rows are set aside for."""
        for slot, row in enumerate(self._rows):
            if row is not None and row.target == Seat(self.id, slot):
                yield row

    def is_idle(self, microbatch: int) -> bool:
        return self._in_flight[microbatch] is None

    def free_slots(self, microbatch: int) -> list[int]:
        """Rows that nobody has. A step may open them; steps in flight come before it."""
        size = self.shape.batch_size
        first = microbatch * size
        return [
            slot
            for slot in range(first, first + size)
            if self._rows[slot] is None and slot not in self._dirty
        ]

    def has_room(self, slot: int) -> bool:
        """Whether this row can be given to somebody whose log may be in it."""
        in_range = 0 <= slot < self.shape.n_slots
        return in_range and self._rows[slot] is None and slot not in self._dirty

    def may_take(self, microbatch: int, n_waiting: int) -> int:
        """How many more rows this microbatch should take of ``n_waiting`` sequences.

        Sequences spread over as many microbatches as there are stages; further microbatches open
        only when those are full, because a half-empty step costs nearly as much as a full one.
        """
        occupied = [self._n_taken(m) for m in range(self.shape.n_microbatches)]
        mine, size, stages = occupied[microbatch], self.shape.batch_size, self.shape.n_stages
        others_open = sum(count > 0 for m, count in enumerate(occupied) if m != microbatch)
        others_full = all(count in (0, size) for m, count in enumerate(occupied) if m != microbatch)
        if not mine and others_open >= stages and not others_full:
            return 0
        share = -(-(sum(occupied) + n_waiting) // stages)
        return max(0, min(share, size) - mine)

    def place_for_one(self) -> int | None:
        """The row to be set aside next; None if there is none.

        In the emptiest of the fullest microbatches, as many of them as there are stages; in others
        only when those are full. What is shipped there does not wait for steps, so none in flight
        may touch the slot.
        """
        flying = [step for step in self._in_flight if step is not None]
        touched = set().union(*map(_slots_of, flying))
        fullest = sorted(range(self.shape.n_microbatches), key=lambda m: (-self._n_taken(m), m))
        n_stages = self.shape.n_stages
        for microbatch in (*reversed(fullest[:n_stages]), *fullest[n_stages:]):
            for slot in self.free_slots(microbatch):
                if slot not in touched:
                    return slot
        return None

    def give(self, slot: int, sequence: Sequence) -> None:
        assert self._rows[slot] is None, f"slot {slot} is taken by {self._rows[slot]!r}"
        self._rows[slot] = sequence

    def replace(self, slot: int, sequence: Sequence) -> None:
        self._rows[slot] = sequence

    def free(self, slot: int) -> None:
        self._rows[slot] = None

    def poison(self, slot: int) -> None:
        """The slot's memory may hold non-finite values: a step cleans it before it is given."""
        self._dirty.add(slot)

    def is_dirty(self, slot: int) -> bool:
        """Whether the next step cleans the slot's memory."""
        return slot in self._dirty

    def lose(self, stage: int, now: float) -> None:
        """A stage is gone, and every step in flight with it."""
        self.missing.add(stage)
        self.void()
        if self.broken_since is None:
            self.broken_since = now

    def void(self) -> None:
        """No step in flight counts any more; what one was to clean is still to be cleaned."""
        for step in self._in_flight:
            self._dirty.update(step.scrubs if step is not None else ())
        self._in_flight = [None] * self.shape.n_microbatches

    def regain(self, stage: int) -> None:
        self.missing.discard(stage)
        if not self.missing:
            self.broken_since = None

    def next_step(
        self, microbatch: int, *, step_id: int, next_epoch: Callable[[], int]
    ) -> Step | None:
        """The next step of an idle microbatch, now in flight; None if no row has work."""
        able = [s for s in self.sitting(microbatch) if self._is_able(s)]
        members = sorted(able, key=lambda sequence: sequence.id)
        for sequence in members:
            if sequence.must_reship:
                sequence.restart_shipping(next_epoch())
        begins = [s.begin() for s in members if s.is_beginning]
        ships = [s.ship() for s in members if s.owes_ship]
        decodes = [s.next_decode() for s in members if self._decodes(s)]
        chunks = self._chunks([s for s in members if s.is_in_prompt])
        size = self.shape.batch_size
        scrubs = sorted(slot for slot in self._dirty if slot // size == microbatch)
        if not (begins or ships or decodes or chunks or scrubs):
            return None
        self._dirty.difference_update(scrubs)
        step = Step(
            id=step_id,
            microbatch=microbatch,
            pipeline=self.id,
            scrubs=tuple(scrubs),
            opens=tuple(each for each in begins if isinstance(each, Open)),
            adopts=tuple(each for each in begins if isinstance(each, Adopt)),
            forks=tuple(each for each in begins if isinstance(each, Fork)),
            ships=tuple(ships),
            decodes=tuple(decodes),
            chunks=tuple(chunks),
        )
        self._in_flight[microbatch] = step
        return step

    def finish(self, step_id: int, microbatch: int) -> Step | None:
        """The step that came back; None if it is not the one in flight (an earlier life's)."""
        step = self._in_flight[microbatch]
        if step is None or step.id != step_id:
            return None
        self._in_flight[microbatch] = None
        return step

    def _n_taken(self, microbatch: int) -> int:
        size = self.shape.batch_size
        rows = self._rows[microbatch * size : (microbatch + 1) * size]
        return size - rows.count(None)

    def _is_able(self, sequence: Sequence) -> bool:
        """Its log is whole, and a prompt that is only computed here has somewhere to go."""
        if sequence.awaits:
            return False
        return self.purpose is not Purpose.PROMPT or sequence.target is not None

    def _decodes(self, sequence: Sequence) -> bool:
        stays = self.purpose is not Purpose.PROMPT and sequence.target is None
        return stays and not sequence.is_in_prompt

    def _chunks(self, members: list[Sequence]) -> list[Chunk]:
        """Prompt chunks up to the budget, for ``members`` from the oldest to the newest.

        The oldest gets one, so that every prompt comes to its end; the others, if the budget has
        more than one, go to those who lack the least, so that a long prompt does not hold up
        short ones.
        """
        if not members:
            return []
        budget = self._chunk_budget() - 1
        chunks = [members[0].next_chunk(self.shape.chunk_tokens)]
        for sequence in sorted(members, key=lambda each: each.n_prefill - each.n_logged):
            while budget and sequence.is_in_prompt:
                chunks.append(sequence.next_chunk(self.shape.chunk_tokens))
                budget -= 1
        return chunks

    def _chunk_budget(self) -> int:
        """More than usual as long as no row decodes: there is nobody whose tokens would wait.

        A prompt costs by its chunks, so this packs prompts by their length, not by their number.
        """
        anyone_decodes = any(self._decodes(sequence) for sequence in self.sitting())
        return self.shape.chunks_per_step * (1 if anyone_decodes else FILLING)


def _slots_of(step: Step) -> set[int]:
    operations = (step.opens, step.adopts, step.ships, step.decodes, step.chunks)
    touched = {item.slot for items in operations for item in items}
    ends = {slot for fork in step.forks for slot in (fork.source, fork.target)}
    return touched | ends | set(step.scrubs)
