"""The rows of one pipeline: who sits where, which microbatches are in flight, the next step.

Knows sequences and slots; knows nothing of clients, queues' limits or time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dvrt.control.sequence import Sequence
from dvrt.control.steps import Chunk, Decode, Fork, Open, Step

FILLING = 4
"""So many times the usual prompt chunks go into a step while no row decodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShape:
    """``n_microbatches`` of ``batch_size`` rows over ``n_stages``.

    ``chunk_tokens`` is the length of a prompt chunk, ``chunks_per_step`` how many of them one step
    may carry beside its decodes: the bound on how long a prompt holds up the others.
    """

    n_stages: int
    n_microbatches: int
    batch_size: int
    chunk_tokens: int
    chunks_per_step: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")

    @property
    def n_slots(self) -> int:
        return self.n_microbatches * self.batch_size


class Pipeline:
    """Rows and steps in flight. A row is given away only while its microbatch is not in flight."""

    def __init__(self, shape: PipelineShape) -> None:
        self.shape = shape
        self._rows: list[Sequence | None] = [None] * shape.n_slots
        self._inherited: set[int] = set()
        self._dirty: set[int] = set()
        self._in_flight: list[Step | None] = [None] * shape.n_microbatches
        self._next_step = 0

    def __repr__(self) -> str:
        rows = [sum(1 for _ in self.sequences(m)) for m in range(self.shape.n_microbatches)]
        flying = [m for m, step in enumerate(self._in_flight) if step is not None]
        return f"<Pipeline rows {rows} in flight {flying}>"

    @property
    def n_occupied(self) -> int:
        return sum(row is not None for row in self._rows)

    @property
    def n_in_flight(self) -> int:
        return sum(step is not None for step in self._in_flight)

    def sequences(self, microbatch: int | None = None) -> Iterator[Sequence]:
        """Those that have a row, of one microbatch or of all, in the order of their slots."""
        size = self.shape.batch_size
        rows = self._rows
        if microbatch is not None:
            rows = rows[microbatch * size : (microbatch + 1) * size]
        return (row for row in rows if row is not None)

    def is_idle(self, microbatch: int) -> bool:
        return self._in_flight[microbatch] is None

    def free_slots(self, microbatch: int) -> list[int]:
        size = self.shape.batch_size
        first = microbatch * size
        return [slot for slot in range(first, first + size) if self._rows[slot] is None]

    def may_take(self, microbatch: int, n_waiting: int) -> int:
        """How many more rows this microbatch should take of ``n_waiting`` sequences.

        Sequences spread over as many microbatches as there are stages; further microbatches open
        only when those are full, because a half-empty step costs nearly as much as a full one.
        """
        occupied = [sum(1 for _ in self.sequences(m)) for m in range(self.shape.n_microbatches)]
        mine, size, stages = occupied[microbatch], self.shape.batch_size, self.shape.n_stages
        others_open = sum(count > 0 for m, count in enumerate(occupied) if m != microbatch)
        others_full = all(count in (0, size) for m, count in enumerate(occupied) if m != microbatch)
        if not mine and others_open >= stages and not others_full:
            return 0
        share = -(-(sum(occupied) + n_waiting) // stages)
        return max(0, min(share, size) - mine)

    def seat(self, sequence: Sequence, slot: int) -> None:
        """Give a free row to a sequence; the caller opens or forks its log into the next step."""
        assert self._rows[slot] is None, f"slot {slot} is taken by {self._rows[slot]!r}"
        self._rows[slot] = sequence

    def poison(self, slot: int) -> None:
        """Remember that the slot's memory may hold non-finite values; its next owner cleans it."""
        self._dirty.add(slot)

    def leave(self, sequence: Sequence) -> int | None:
        """Take the sequence's row away; its slot, or None if it had none."""
        slot, sequence.slot = sequence.slot, None
        if slot is not None:
            self._rows[slot] = None
            self._inherited.discard(slot)
        return slot

    def inherit(self, sequence: Sequence, slot: int) -> None:
        """Seat a sample in the row of a sibling that just left: the prompt's entries stay there."""
        self.seat(sequence, slot)
        sequence.slot, sequence.n_logged = slot, sequence.n_prompt
        self._inherited.add(slot)

    def next_step(self, microbatch: int, opens: list[Open], forks: list[Fork]) -> Step | None:
        """The next step of an idle microbatch, now in flight; None if no row has work."""
        members = sorted(self.sequences(microbatch), key=lambda sequence: sequence.id)
        forks = forks + [self._fork_in_place(s) for s in members if s.slot in self._inherited]
        decodes = [s.next_decode() for s in members if not s.is_in_prompt]
        chunks = self._chunks([s for s in members if s.is_in_prompt])
        return self._launch(microbatch, opens, forks, decodes, chunks)

    def finish(self, step_id: int, microbatch: int) -> Step | None:
        """The step that came back; None if it is not the one in flight (an earlier life's)."""
        step = self._in_flight[microbatch]
        if step is None or step.id != step_id:
            return None
        self._in_flight[microbatch] = None
        return step

    def _fork_in_place(self, sequence: Sequence) -> Fork:
        assert sequence.slot is not None
        self._inherited.discard(sequence.slot)
        return sequence.fork(sequence.slot, sequence.slot)

    def _chunks(self, members: list[Sequence]) -> list[Chunk]:
        """Prompt chunks up to the budget, the oldest sequence first."""
        budget, chunks = self._chunk_budget(), []
        for sequence in members:
            while budget and sequence.is_in_prompt:
                chunks.append(sequence.next_chunk(self.shape.chunk_tokens))
                budget -= 1
        return chunks

    def _chunk_budget(self) -> int:
        """More than usual as long as no row decodes: there is nobody whose tokens would wait."""
        anyone_decodes = any(not sequence.is_in_prompt for sequence in self.sequences())
        return self.shape.chunks_per_step * (1 if anyone_decodes else FILLING)

    def _launch(
        self,
        microbatch: int,
        opens: list[Open],
        forks: list[Fork],
        decodes: list[Decode],
        chunks: list[Chunk],
    ) -> Step | None:
        if not (decodes or chunks):
            assert not opens, "a row was opened without work"
            assert not forks, "a log was forked without work"
            return None
        taken = {begun.slot for begun in opens} | {fork.target for fork in forks}
        scrubs = sorted(self._dirty & taken)
        self._dirty.difference_update(scrubs)
        step = Step(
            id=self._next_step,
            microbatch=microbatch,
            scrubs=tuple(scrubs),
            opens=tuple(opens),
            forks=tuple(forks),
            decodes=tuple(decodes),
            chunks=tuple(chunks),
        )
        self._next_step += 1
        self._in_flight[microbatch] = step
        return step
