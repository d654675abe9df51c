"""How much of each log a holder of copies has been sent, and what it should be sent next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dvrt.kv.log import Log

PAUSE_S = 0.03
"""A holder gets no more often what there is: with steps of a few milliseconds, packing, sending and
checking once a round costs both sides more than what a loss may have to compute again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """Entries [start, stop) of a log that the holder lacks; none when only its epoch is new."""

    slot: int
    seq: int
    epoch: int
    start: int
    stop: int


class Copied:
    """The state of one holder, as its sender sees it.

    Under a new epoch a log may be shorter than what was sent before: then its next range begins
    where the two part, also if that range is still empty.
    """

    def __init__(self) -> None:
        self._sent: dict[int, Log] = {}

    def opened(self, slot: int, *, seq: int, length: int) -> None:
        """The slot's log begins again with ``length`` entries, which are as they were."""
        sent = self._sent.get(slot)
        if sent is None:
            return
        if sent.seq != seq:
            del self._sent[slot]
        elif length < sent.length:
            self._sent[slot] = Log(seq=seq, epoch=sent.epoch, length=length)

    def forget(self, slots: Iterable[int] | None = None) -> None:
        """The holder lacks these logs, or all: they are owed from their beginning."""
        if slots is None:
            self._sent.clear()
            return
        for slot in slots:
            self._sent.pop(slot, None)

    def next(self, logs: Iterable[tuple[int, Log]], n_entries: int) -> tuple[list[Owed], bool]:
        """What to send now, at most ``n_entries`` in all, as if it were sent; and whether that is
        all."""
        owed: list[Owed] = []
        left = n_entries
        for slot, log in logs:
            sent = self._sent.get(slot)
            if sent is not None and sent.seq != log.seq:
                sent = None
            start = 0 if sent is None else min(sent.length, log.length)
            if sent is not None and (sent.epoch, sent.length) == (log.epoch, log.length):
                continue
            stop = min(log.length, start + left)
            if stop == start < log.length:
                return owed, False
            left -= stop - start
            owed.append(Owed(slot=slot, seq=log.seq, epoch=log.epoch, start=start, stop=stop))
            self._sent[slot] = Log(seq=log.seq, epoch=log.epoch, length=stop)
            if stop < log.length:
                return owed, False
        return owed, True
