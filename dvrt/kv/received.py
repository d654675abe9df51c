"""The parts of logs that others have sent to one holder: how far each goes, and when one is whole.

Pure bookkeeping, by slot: the bytes lie where the holder has put them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dvrt.errors import Corrupted, ProtocolError
from dvrt.kv.digest import Sum, Tally

MAX_SENDERS = 64
"""Senders of one log that are told apart; more of them are a breach of protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Entries [start, stop) of a log in the layers [first, last), the ``index``-th of its sender.

    ``nbytes`` and ``digest`` are those of the bytes that came.
    """

    slot: int
    seq: int
    epoch: int
    first: int
    last: int
    start: int
    stop: int
    sender: str
    index: int
    nbytes: int
    digest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A sender has sent all of [0, length) in the layers [first, last), ``stated`` in sum."""

    slot: int
    seq: int
    epoch: int
    first: int
    last: int
    length: int
    sender: str
    stated: Sum


@dataclass(slots=True)
class ReceivedCounters:
    """Dropped parts and seals, by reason; ``refused`` are senders whose log came damaged."""

    late: int = 0
    gaps: int = 0
    repeated: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Incoming:
    """One slot's newest log: per layer how much has come, and how much of that is sealed."""

    seq: int
    epoch: int
    marks: list[int]
    sealed: list[int]
    whole: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)


class Received:
    """What came for ``n_slots`` slots of a holder of the layers [first, last).

    Of the logs that come for a slot the one with the larger epoch wins; what comes of another is
    late. A log is shortened by nothing here: one that is sent anew has a larger epoch.
    """

    def __init__(self, n_slots: int, capacity: int, *, first: int, last: int) -> None:
        """``capacity`` is the largest length of a log."""
        self._slots: list[_Incoming | None] = [None] * n_slots
        self._capacity = capacity
        self._first, self._last = first, last
        self.counters = ReceivedCounters()

    def admit(self, part: Part, *, floor: int = -1) -> bool:
        """Whether the part is to be written, now; False when it is late, repeated or beyond a gap.

        Logs whose epoch is not above ``floor`` are late. Raises ProtocolError for a part that
        cannot be, Corrupted for an index that came before.
        """
        self._check(part.slot, part.first, part.last, part.start, part.stop)
        incoming = self._incoming(part, floor)
        if incoming is None:
            return False
        self._tally(incoming, part.sender).add(part.index, nbytes=part.nbytes, digest=part.digest)
        layers = range(part.first - self._first, part.last - self._first)
        if any(incoming.marks[layer] < part.start for layer in layers):
            self.counters.gaps += 1
            return False
        if all(incoming.marks[layer] >= part.stop for layer in layers):
            self.counters.repeated += 1
            return False
        for layer in layers:
            incoming.marks[layer] = max(incoming.marks[layer], part.stop)
        return True

    def seal(self, seal: Seal, *, floor: int = -1) -> int | None:
        """The length up to which all layers are here and checked, if it has grown by this.

        Raises ProtocolError for a seal that cannot be, Corrupted where what came is not what was
        sent.
        """
        self._check(seal.slot, seal.first, seal.last, 0, seal.length)
        incoming = self._incoming(seal, floor)
        if incoming is None:
            return None
        self._tally(incoming, seal.sender).ensure(seal.stated)
        layers = range(seal.first - self._first, seal.last - self._first)
        held = min(incoming.marks[layer] for layer in layers)
        if held < seal.length:
            raise Corrupted("length of a log", expected=seal.length, got=held)
        for layer in layers:
            incoming.sealed[layer] = max(incoming.sealed[layer], seal.length)
        whole = min(incoming.sealed)
        if whole <= incoming.whole:
            return None
        incoming.whole = whole
        return whole

    def begin(self, part: Part, *, floor: int = -1) -> None:
        """Something has come of this log, counted or not. Raises ProtocolError as ``admit`` does.

        After this a part that cannot be counted can be refused.
        """
        self._check(part.slot, part.first, part.last, part.start, part.stop)
        incoming = self._slots[part.slot]
        if part.epoch > floor and (incoming is None or incoming.epoch < part.epoch):
            self._incoming(part, floor)

    def refuse(self, name: Part | Seal) -> bool:
        """Take nothing more of this sender for this log; another may still send it.

        False when this is no news, or about a log that is not the newest one.
        """
        incoming = self._slots[name.slot] if 0 <= name.slot < len(self._slots) else None
        if incoming is None or (incoming.seq, incoming.epoch) != (name.seq, name.epoch):
            return False
        if name.sender in incoming.refused:
            return False
        incoming.refused.add(name.sender)
        self.counters.refused += 1
        return True

    def held(self, slot: int, *, seq: int, epoch: int) -> int:
        """How much of a sequence's log is whole in the slot, under this epoch or a smaller one."""
        incoming = self._slots[slot]
        if incoming is None or incoming.seq != seq or incoming.epoch > epoch:
            return 0
        return incoming.whole

    def taken(self, slot: int, *, epoch: int) -> None:
        """The slot has a log of its own under this epoch now: older ones are forgotten."""
        incoming = self._slots[slot]
        if incoming is not None and incoming.epoch <= epoch:
            self._slots[slot] = None

    def _incoming(self, name: Part | Seal, floor: int) -> _Incoming | None:
        """The log that this is about; None, counted, when it is late."""
        incoming = self._slots[name.slot]
        if name.epoch <= floor or (incoming is not None and name.epoch < incoming.epoch):
            self.counters.late += 1
            return None
        if incoming is None or incoming.epoch < name.epoch:
            n_layers = self._last - self._first
            incoming = _Incoming(name.seq, name.epoch, [0] * n_layers, [0] * n_layers)
            self._slots[name.slot] = incoming
        if incoming.seq != name.seq:
            raise ProtocolError(
                f"slot {name.slot}: sequences {incoming.seq} and {name.seq} in epoch {name.epoch}"
            )
        if name.sender in incoming.refused:
            self.counters.late += 1
            return None
        return incoming

    def _tally(self, incoming: _Incoming, sender: str) -> Tally:
        tally = incoming.tallies.get(sender)
        if tally is None:
            if len(incoming.tallies) == MAX_SENDERS:
                raise ProtocolError(f"more than {MAX_SENDERS} senders of one log")
            tally = incoming.tallies[sender] = Tally()
        return tally

    def _check(self, slot: int, first: int, last: int, start: int, stop: int) -> None:
        is_here = 0 <= slot < len(self._slots) and self._first <= first < last <= self._last
        if not (is_here and 0 <= start < stop <= self._capacity):
            raise ProtocolError(
                f"slot {slot}, layers [{first}, {last}), positions [{start}, {stop}): this holds "
                f"{len(self._slots)} slots of {self._capacity} in [{self._first}, {self._last})"
            )
