"""Which positions of which logs lie where in the files of one stage. Pure bookkeeping.

Built the same way from what is being written as from what an earlier life wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dvrt.protocol.messages import LogRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Positions [start, stop) of a log: ``at`` bytes into the region of the record at ``record``
    of file ``file``."""

    start: int
    stop: int
    file: int
    record: int
    at: int


@dataclass(slots=True)
class _Filed:
    """One log: its pieces join each other from position 0 on. ``is_former``: only an earlier life
    of this worker wrote it."""

    place: tuple[int, int]
    epoch: int
    is_former: bool = False
    pieces: list[Piece] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.pieces[-1].stop if self.pieces else 0


class LogIndex:
    """Logs by sequence. A slot of a pipeline that another sequence has now forgets the former one,
    unless it is an earlier life's, which may still be wanted back elsewhere.

    Entries of one epoch never change; so what is written again replaces the same, and nothing
    behind it is lost. Under a larger epoch a log is cut to where its next range begins.
    """

    def __init__(self) -> None:
        self._logs: dict[int, _Filed] = {}
        self._by_place: dict[tuple[int, int], int] = {}

    def add(
        self, each: LogRange, *, pipeline: int, file: int, record: int, at: int, entry_bytes: int
    ) -> bool:
        """Take note of a range; False when it does not join what is there."""
        log = self._logs.get(each.seq)
        if log is not None and log.epoch > each.epoch:
            return True  # late, and of no more use
        if each.start > (0 if log is None else log.length):
            return False
        log = self._owner(each, (pipeline, each.slot))
        if each.start < log.length:
            before = list(_within(log.pieces, 0, each.start, entry_bytes))
            is_same = log.epoch == each.epoch
            after = list(_within(log.pieces, each.stop, log.length, entry_bytes)) if is_same else []
        else:
            before, after = log.pieces, []
        if each.stop > each.start:
            before.append(Piece(start=each.start, stop=each.stop, file=file, record=record, at=at))
        log.pieces = before + after if after else before
        log.epoch, log.is_former = each.epoch, False
        return True

    def pieces(self, seq: int, length: int, entry_bytes: int) -> list[Piece]:
        """Where the first ``length`` entries of a log are, or as many as there are."""
        log = self._logs.get(seq)
        return [] if log is None else list(_within(log.pieces, 0, length, entry_bytes))

    def epoch_of(self, seq: int) -> int:
        """That of a log that is here; -1 for others."""
        log = self._logs.get(seq)
        return -1 if log is None else log.epoch

    def begin_life(self) -> None:
        """All that is here is an earlier life's."""
        for log in self._logs.values():
            log.is_former = True

    def drop_former(self) -> None:
        """Forget logs that only earlier lives wrote."""
        for seq in [seq for seq, log in self._logs.items() if log.is_former]:
            self._forget(seq)

    def drop(self, pipeline: int) -> None:
        """Forget all logs of a pipeline that is closed."""
        for seq in [seq for seq, log in self._logs.items() if log.place[0] == pipeline]:
            self._forget(seq)

    def live(self) -> Iterator[LogRange]:
        """All logs, as far as they are here."""
        for seq, log in self._logs.items():
            slot = log.place[1]
            yield LogRange(slot=slot, seq=seq, epoch=log.epoch, start=0, stop=log.length)

    @property
    def files(self) -> set[int]:
        """The files that something is still wanted of."""
        return {piece.file for log in self._logs.values() for piece in log.pieces}

    @property
    def n_positions(self) -> int:
        return sum([log.length for log in self._logs.values()])

    def _owner(self, each: LogRange, place: tuple[int, int]) -> _Filed:
        former = self._by_place.get(place)
        if former is not None and former != each.seq and not self._logs[former].is_former:
            self._forget(former)
        log = self._logs.get(each.seq)
        if log is None:
            log = self._logs[each.seq] = _Filed(place, each.epoch)
        elif log.place != place:
            if self._by_place.get(log.place) == each.seq:
                del self._by_place[log.place]
            log.place = place
        self._by_place[place] = each.seq
        return log

    def _forget(self, seq: int) -> None:
        log = self._logs.pop(seq)
        if self._by_place.get(log.place) == seq:
            del self._by_place[log.place]


def _within(pieces: list[Piece], start: int, stop: int, entry_bytes: int) -> Iterator[Piece]:
    """The parts of these that lie in [start, stop)."""
    for piece in pieces:
        first, last = max(piece.start, start), min(piece.stop, stop)
        if first < last:
            skipped = (first - piece.start) * entry_bytes
            yield replace(piece, start=first, stop=last, at=piece.at + skipped)
