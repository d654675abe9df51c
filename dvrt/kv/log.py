"""The append-only log: which slot holds which sequence's KV entries, and how many of them.

An entry's name is (sequence, epoch, position). Within an epoch a log only grows, by ranges that
begin where it ends; ``truncate`` opens a new epoch. The table knows lengths, not bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dvrt.errors import ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The log of sequence ``seq`` in ``epoch`` holds the entries of positions [0, length)."""

    seq: int
    epoch: int
    length: int


class LogTable:
    """The logs of one holder, by slot. A broken rule raises ProtocolError and changes nothing."""

    def __init__(self, n_slots: int, capacity: int) -> None:
        """``capacity`` is the largest length of a log."""
        self._slots: list[Log | None] = [None] * n_slots
        self._capacity = capacity

    def __iter__(self) -> Iterator[tuple[int, Log]]:
        return ((slot, log) for slot, log in enumerate(self._slots) if log is not None)

    def __repr__(self) -> str:
        held = ", ".join(f"{slot}:{log.seq}@{log.epoch}[0,{log.length})" for slot, log in self)
        return f"<LogTable {held or 'empty'}>"

    def get(self, slot: int) -> Log | None:
        return self._slots[slot]

    def open(self, slot: int, *, seq: int, epoch: int, length: int = 0) -> None:
        """Give the slot to a sequence; whatever it held is forgotten."""
        if not 0 <= length <= self._capacity:
            raise ProtocolError(f"a log of {length} entries; a slot holds {self._capacity}")
        self._slots[slot] = Log(seq=seq, epoch=epoch, length=length)

    def extend(self, slot: int, *, seq: int, epoch: int, start: int, stop: int) -> None:
        """Append the entries of positions [start, stop); ``start`` must be the log's length."""
        log = self._require(slot, seq=seq, epoch=epoch)
        if start != log.length or not start < stop <= self._capacity:
            raise ProtocolError(
                f"slot {slot}: extend [{start}, {stop}) of a log of {log.length}"
                f" entries, capacity {self._capacity}"
            )
        self._slots[slot] = Log(seq=seq, epoch=epoch, length=stop)

    def fork(self, source: int, target: int, *, seq: int, epoch: int, length: int) -> None:
        """Open ``target`` with the first ``length`` entries of ``source``; both may be one slot."""
        log = self._slots[source]
        if log is None or log.length < length:
            raise ProtocolError(f"slot {source} cannot be forked at {length}: it holds {log}")
        self.open(target, seq=seq, epoch=epoch, length=length)

    def truncate(self, slot: int, *, seq: int, epoch: int, length: int) -> None:
        """Keep the first ``length`` entries under a new, larger epoch."""
        log = self._slots[slot]
        if log is None or log.seq != seq or epoch <= log.epoch or length > log.length:
            raise ProtocolError(f"slot {slot}: truncate {seq}@{epoch} to {length}: it holds {log}")
        self._slots[slot] = Log(seq=seq, epoch=epoch, length=length)

    def close(self, slot: int, *, seq: int) -> None:
        """Forget the sequence's log; nothing happens if the slot has another one by now."""
        log = self._slots[slot]
        if log is not None and log.seq == seq:
            self._slots[slot] = None

    def _require(self, slot: int, *, seq: int, epoch: int) -> Log:
        log = self._slots[slot]
        if log is None or (log.seq, log.epoch) != (seq, epoch):
            raise ProtocolError(f"slot {slot}: {seq}@{epoch} is not here: it holds {log}")
        return log
