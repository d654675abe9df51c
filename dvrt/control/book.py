"""Who is being served: requests, their samples, and the queue of those without a row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from dvrt.control.events import Known
from dvrt.control.group import Group
from dvrt.control.sequence import Sequence
from dvrt.requests import Request


class Book:
    """Groups by request id, sequences by id, and the queue, in step with each other."""

    def __init__(self, first_number: int = 0) -> None:
        self.groups: dict[str, Group] = {}
        self.queue: deque[Sequence] = deque()
        self._sequences: dict[int, Sequence] = {}
        self._next_id = first_number

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def n_waiting(self, n_free_rows: int) -> int:
        """Requests of which no sample has a row, or gets one of those that are free; samples of
        other requests wait for rows of their own."""
        waiting: dict[str, bool] = {}
        for place, sequence in enumerate(self.queue):
            waiting.setdefault(sequence.request.id, place >= n_free_rows)
        return sum(late and not self.groups[name].seated for name, late in waiting.items())

    def get(self, seq: int, epoch: int) -> Sequence | None:
        """The sequence whose log has this name; None if it ended or has begun another log."""
        sequence = self._sequences.get(seq)
        return sequence if sequence is not None and sequence.epoch == epoch else None

    def find(self, seq: int) -> Sequence | None:
        return self._sequences.get(seq)

    def group_of(self, sequence: Sequence) -> Group:
        return self.groups[sequence.request.id]

    def add_group(self, request: Request, now: float) -> Group:
        group = self.groups[request.id] = Group(request, now)
        return group

    def add_sample(self, group: Group, sample: int) -> Sequence:
        sequence = Sequence(self._next_id, group.request, sample)
        self._next_id += 1
        self._sequences[sequence.id] = group.live[sample] = sequence
        return sequence

    def add_known(self, group: Group, sample: int, known: Known) -> Sequence:
        """A sample of an earlier life, with the log's name that it had then."""
        sequence = Sequence(known.seq, group.request, sample)
        sequence.know(known.tokens)
        assert sequence.id not in self._sequences, f"sequence {sequence.id} is there already"
        self._sequences[sequence.id] = group.live[sample] = sequence
        return sequence

    def wait_first(self, sequences: Iterable[Sequence]) -> None:
        """Put these in front of the queue, in their order."""
        self.queue.extendleft(reversed(list(sequences)))

    def forget(self, sequence: Sequence) -> None:
        """A sample has ended; the group goes with its last one."""
        group = self.group_of(sequence)
        del group.live[sequence.sample]
        del self._sequences[sequence.id]
        if not group.live:
            del self.groups[group.request.id]
