"""Copies of a stage's logs at other machines: how far they have come, and what is on its way."""

from __future__ import annotations

from collections.abc import Iterable

from dvrt.kv.copied import PAUSE_S
from dvrt.simulator.agenda import Agenda
from dvrt.simulator.machine import Machine, transfer

Log = tuple[int, int]
"""(sequence, length)."""


class Copies:
    """One stage's logs at one holder. One message at a time and a pause behind it, as in the
    runtime; what comes meanwhile is in the next.

    So replication may fall behind, and compute never waits for it.
    """

    def __init__(self, source: Machine, holder: Machine, entry_bytes: int) -> None:
        self._source, self.holder = source, holder
        self._entry_bytes = entry_bytes
        self._held: dict[int, Log] = {}
        self._sent: dict[int, Log] = {}
        self._waiting: dict[int, Log] = {}
        self._is_busy = False

    def grown(self, logs: Iterable[tuple[int, int, int]]) -> None:
        """These (slot, sequence, length) are in the stage's memory."""
        for slot, seq, length in logs:
            self._waiting[slot] = (seq, length)

    def pump(self, agenda: Agenda, now: float, bandwidth: float, latency_s: float) -> None:
        """Send what waits, unless something is on its way."""
        if self._is_busy or not (self._waiting and self.holder.is_up and self._source.is_up):
            return
        batch, self._waiting = self._waiting, {}
        size_bytes = sum(self._new(slot, log) for slot, log in batch.items()) * self._entry_bytes
        self._sent.update(batch)
        self._is_busy = True
        end_s = transfer(self._source, self.holder, size_bytes, bandwidth, begin_s=now) + latency_s
        lives = (self._source.life, self.holder.life)

        def arrive() -> None:
            if lives == (self._source.life, self.holder.life):
                self._held.update(batch)
                agenda.put(end_s + PAUSE_S, go_on)

        def go_on() -> None:
            if lives == (self._source.life, self.holder.life):
                self._is_busy = False
                self.pump(agenda, end_s + PAUSE_S, bandwidth, latency_s)

        agenda.put(end_s, arrive)

    def length(self, slot: int, seq: int) -> int:
        """How many entries of a sequence's log the holder could give back."""
        held = self._held.get(slot)
        if held is None or held[0] != seq or not self.holder.is_up:
            return 0
        return held[1]

    def lost_source(self) -> None:
        """The stage is gone: nothing more comes of it; what the holder has, it keeps."""
        self._sent.clear()
        self._waiting.clear()
        self._is_busy = False

    def lost_holder(self, logs: dict[int, Log]) -> None:
        """The copies are gone; ``logs`` are all that the stage has, to be sent again."""
        self._held.clear()
        self._sent.clear()
        self._waiting = dict(logs)
        self._is_busy = False

    def _new(self, slot: int, log: Log) -> int:
        seq, length = self._sent.get(slot, (-1, 0))
        return max(0, log[1] - length) if seq == log[0] else log[1]


class Replication:
    """The logs of one stage and its copies at the next machines of the ring."""

    def __init__(
        self, source: Machine, holders: Iterable[Machine], *, entry_bytes: int, bandwidth: float
    ) -> None:
        self._bandwidth = bandwidth
        self._logs: dict[int, Log] = {}
        self.copies = [Copies(source, holder, entry_bytes) for holder in holders]

    def computed(
        self, logs: list[tuple[int, int, int]], agenda: Agenda, now: float, latency_s: float
    ) -> None:
        """A step has ended at the stage; these are the logs that it begins or extends."""
        self._logs |= {slot: (seq, length) for slot, seq, length in logs}
        for each in self.copies:
            each.grown(logs)
            each.pump(agenda, now, self._bandwidth, latency_s)

    def best(self, slot: int, seq: int) -> tuple[int, Machine | None]:
        """The longest copy of a log, and who has it; (0, None) for none."""
        found = [(each.length(slot, seq), each.holder) for each in self.copies]
        length, holder = max(found, key=lambda pair: pair[0], default=(0, None))
        return (length, holder) if length else (0, None)

    def lost_source(self) -> None:
        self._logs.clear()
        for each in self.copies:
            each.lost_source()

    def lost_machine(self, machine: Machine) -> None:
        for each in self.copies:
            if each.holder is machine:
                each.lost_holder(self._logs)
