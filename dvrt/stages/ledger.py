"""The logs of one stage: its own, those it has received, and when one becomes the other.

Belongs to the stage's compute, as the model does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dvrt.control.steps import Adopt, Fork, Open
from dvrt.errors import Corrupted, ProtocolError
from dvrt.kv.copied import Copied
from dvrt.kv.digest import Sum, digest_of
from dvrt.kv.log import LogTable
from dvrt.kv.received import Part, Received, Seal
from dvrt.kv.spans import Span
from dvrt.protocol.messages import Commit, Entries, LogRange
from dvrt.stages.cargo import Cargo
from dvrt.stages.model import StageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Of a log that comes from others: it is whole up to ``length``, or refused for ``reason``."""

    slot: int
    seq: int
    epoch: int
    length: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What a holder of copies lacks, packed; ``is_all`` or there is more."""

    ranges: tuple[LogRange, ...]
    packed: Any
    is_all: bool


class Ledger:
    """Who owns which entries of the model's arena. A broken rule raises ProtocolError."""

    def __init__(self, model: StageModel, span: Span, *, n_slots: int, max_context: int) -> None:
        self.logs = LogTable(n_slots, max_context)
        self.received = Received(n_slots, max_context, first=span.start, last=span.stop)
        self._model = model
        self._span = span
        self._n_slots = n_slots
        self._copies: dict[str, Copied] = {}

    # What steps do.

    def open(self, item: Open) -> None:
        self.logs.open(item.slot, seq=item.seq, epoch=item.epoch)
        self._began(item, item.slot, 0)

    def adopt(self, item: Adopt) -> None:
        """Go on with entries that are here: from before, or received and whole."""
        log = self.logs.get(item.slot)
        is_own = log is not None and log.seq == item.seq and log.epoch <= item.epoch
        own = log.length if log is not None and is_own else 0
        held = max(own, self.received.held(item.slot, seq=item.seq, epoch=item.epoch))
        if held < item.n_tokens:
            raise ProtocolError(
                f"slot {item.slot}: cannot go on from {item.n_tokens} entries of sequence "
                f"{item.seq}; {held} are here"
            )
        self.logs.open(item.slot, seq=item.seq, epoch=item.epoch, length=item.n_tokens)
        self._began(item, item.slot, item.n_tokens)

    def fork(self, item: Fork) -> None:
        self.logs.fork(
            item.source, item.target, seq=item.seq, epoch=item.epoch, length=item.n_tokens
        )
        if item.source != item.target:
            self._model.fork(item.source, item.target, item.n_tokens)
        self._began(item, item.target, item.n_tokens)

    def extend(self, slot: int, seq: int, epoch: int, start: int, stop: int) -> None:
        self.logs.extend(slot, seq=seq, epoch=epoch, start=start, stop=stop)

    def require(self, slot: int, seq: int, epoch: int, length: int) -> None:
        """Raise ProtocolError unless the slot's log has this name and so many entries."""
        log = self.logs.get(slot)
        if log is None or (log.seq, log.epoch) != (seq, epoch) or log.length < length:
            raise ProtocolError(
                f"slot {slot}: expected {length} entries of sequence {seq}, epoch {epoch}; "
                f"it holds {log}"
            )

    # What others send. Nothing of it can harm this stage: what is wrong is refused.

    def take(self, note: Entries, data: bytes | bytearray) -> News | None:
        """Check entries and write them; news if they are the first to be refused of a sender."""
        part = _part(note, data)
        try:
            self._write(note, part, data)
        except (Corrupted, ProtocolError) as error:
            return self._refused(part, error)
        return None

    def commit(self, note: Commit) -> News | None:
        """A sender has sent its last; news once all layers have the log, or if it is refused."""
        seal = _seal(note)
        try:
            length = self.received.seal(seal, floor=self._floor(note.slot))
        except (Corrupted, ProtocolError) as error:
            return self._refused(seal, error)
        if length is None:
            return None
        return News(slot=note.slot, seq=note.seq, epoch=note.epoch, length=length)

    # What others get.

    def pack(self, cargo: Cargo) -> Any:
        """The cargo's bytes; None when its slot has another log by now."""
        log = self.logs.get(cargo.slot)
        if log is None or (log.seq, log.epoch) != (cargo.seq, cargo.epoch):
            return None
        if log.length < cargo.stop:
            return None
        return self._model.pack([(cargo.slot, cargo.start, cargo.stop)], cargo.first, cargo.last)

    def copy_for(self, holder: str, n_entries: int) -> Copy:
        """What this holder is to be sent next, at most so many entries; it counts as sent."""
        copied = self._copies.setdefault(holder, Copied())
        owed, is_all = copied.next(self.logs, n_entries)
        wanted = [(each.slot, each.start, each.stop) for each in owed if each.stop > each.start]
        first, last = self._span.start, self._span.stop
        ranges = tuple(
            [
                LogRange(
                    slot=each.slot, seq=each.seq, epoch=each.epoch, start=each.start, stop=each.stop
                )
                for each in owed
            ]
        )
        packed = self._model.pack(wanted, first, last) if wanted else b""
        return Copy(ranges=ranges, packed=packed, is_all=is_all)

    def mark_lost(self, holder: str, slots: tuple[int, ...] | None = None) -> None:
        """The holder has nothing of these logs, or of any."""
        copied = self._copies.get(holder)
        if copied is not None:
            copied.forget(slots)

    def forget(self, holder: str) -> None:
        """The holder gets nothing more."""
        self._copies.pop(holder, None)

    def _began(self, item: Open | Adopt | Fork, slot: int, length: int) -> None:
        """The slot's log is this one now, with so many entries that are as they were."""
        self.received.taken(slot, epoch=item.epoch)
        for copied in self._copies.values():
            copied.opened(slot, seq=item.seq, length=length)

    def _write(self, note: Entries, part: Part, data: bytes | bytearray) -> None:
        floor = self._floor(note.slot)
        self.received.begin(part, floor=floor)
        if part.digest != note.digest:
            raise Corrupted("digest of entries", expected=note.digest, got=part.digest)
        expected = (note.stop - note.start) * self._model.entry_bytes(note.first, note.last)
        if part.nbytes != expected:
            raise Corrupted("bytes of entries", expected=expected, got=part.nbytes)
        if not self.received.admit(part, floor=floor):
            return
        log = self.logs.get(note.slot)
        if log is not None:  # its memory is overwritten: nobody may copy or fork it any more
            self.logs.close(note.slot, seq=log.seq)
        self._model.unpack(note.slot, note.start, note.stop, note.first, note.last, data)

    def _refused(self, name: Part | Seal, error: Exception) -> News | None:
        if not self.received.refuse(name):
            return None
        return News(slot=name.slot, seq=name.seq, epoch=name.epoch, length=0, reason=str(error))

    def _floor(self, slot: int) -> int:
        """The epoch of the log that steps use in the slot; -1 without one."""
        log = self.logs.get(slot) if 0 <= slot < self._n_slots else None
        return -1 if log is None else log.epoch


def _part(note: Entries, data: bytes | bytearray) -> Part:
    return Part(
        slot=note.slot,
        seq=note.seq,
        epoch=note.epoch,
        first=note.first,
        last=note.last,
        start=note.start,
        stop=note.stop,
        sender=note.sender,
        index=note.index,
        nbytes=len(data),
        digest=digest_of([data]),
    )


def _seal(note: Commit) -> Seal:
    return Seal(
        slot=note.slot,
        seq=note.seq,
        epoch=note.epoch,
        first=note.first,
        last=note.last,
        length=note.length,
        sender=note.sender,
        stated=Sum(chunks=note.chunks, nbytes=note.nbytes, digest=note.digest),
    )
