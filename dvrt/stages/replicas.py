"""The replica actor of a worker: keeps copies of other workers' logs in host memory.

Knows logs as ranges of bytes. What it cannot keep or believe it refuses and says so; those
positions would be computed again.
"""

from __future__ import annotations

from typing import Any

from dvrt.actors.actor import Context
from dvrt.errors import ProtocolError
from dvrt.kv.digest import digest_of
from dvrt.protocol.messages import (
    DropReplicas,
    LogRange,
    ReplicaSent,
    Replicate,
    SendReplica,
)
from dvrt.stages.holder import Holder
from dvrt.stages.replica_copy import ReplicaCopy, Shelf
from dvrt.stages.shipping import ship_log
from dvrt.wire import Message


class ReplicaActor(Holder):
    """Copies for recovery, acknowledged to ``controller``.

    At most ``limit_bytes`` of entries are kept; a log that finds no more room keeps what it has and
    is given up. ``n_rotten`` counts copies that had changed in memory when they were wanted.
    """

    def __init__(self, controller: str, *, limit_bytes: int) -> None:
        super().__init__(controller)
        self._limit_bytes = limit_bytes
        self._shelves: dict[tuple[int, int], Shelf] = {}
        self._nbytes = 0
        self.n_rotten = 0

    async def receive(self, message: Message, context: Context) -> Any:
        match message:
            case Replicate(pipeline=pipeline):
                if pipeline not in self.dropped:
                    await self._store(message, context)
            case SendReplica():
                return await self._send(message)
            case DropReplicas(pipeline=pipeline):
                self._drop(pipeline)
            case _:
                raise ProtocolError(f"a replica actor does not take {type(message).__name__}")
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of entries that are kept."""
        return self._nbytes

    async def _store(self, note: Replicate, context: Context) -> None:
        data = context.attachments[0] if context.attachments else bytearray()
        is_sound = digest_of([data]) == note.digest
        shelf = self._shelf(note, len(data)) if is_sound else None
        if shelf is None:
            await self.say_gap(note.origin, note.ranges)
            return
        missing, n_refused = self._append(note, shelf, data)
        if missing:
            await self.say_gap(note.origin, missing)
        await self.say_stored(note.pipeline, note.stage, note.step, n_refused=n_refused)

    def _append(
        self, note: Replicate, shelf: Shelf, data: bytearray
    ) -> tuple[tuple[LogRange, ...], int]:
        """Store what joins; the ranges that do not, and how many were refused for want of room."""
        missing: list[LogRange] = []
        n_refused, at = 0, 0
        view = memoryview(data)
        for each in note.ranges:
            size = (each.stop - each.start) * shelf.entry_bytes
            part, at = view[at : at + size], at + size
            copy = self._copy(shelf, each)
            if copy is None:
                continue
            if copy.is_given_up:
                n_refused += 1
            elif copy.nbytes < each.start * shelf.entry_bytes:
                missing.append(each)
            elif self._nbytes + size > self._limit_bytes:
                copy.is_given_up = True
                n_refused += 1
            else:
                copy.append(part)
                self._nbytes += size
        return tuple(missing), n_refused

    def _shelf(self, note: Replicate, nbytes: int) -> Shelf | None:
        """Where a stage's copies are; None for a message whose numbers cannot be."""
        key = (note.pipeline, note.stage)
        shelf = self._shelves.get(key)
        if shelf is None or (shelf.first, shelf.last) != (note.first, note.last):
            if shelf is not None:
                self._nbytes -= shelf.nbytes
            shelf = self._shelves[key] = Shelf(note.first, note.last)
        if any(not 0 <= each.start <= each.stop for each in note.ranges):
            return None
        n_positions = sum([each.stop - each.start for each in note.ranges])
        entry_bytes, rest = divmod(nbytes, n_positions) if n_positions else (0, nbytes)
        if rest or (n_positions and shelf.entry_bytes not in (0, entry_bytes)):
            return None
        shelf.entry_bytes = shelf.entry_bytes or entry_bytes
        return shelf

    def _copy(self, shelf: Shelf, each: LogRange) -> ReplicaCopy | None:
        """The copy that the range goes to, cut to where it begins; None if it is an older log's."""
        copy = shelf.copies.get(each.slot)
        if copy is not None and copy.epoch > each.epoch:
            return None
        before = 0 if copy is None else copy.nbytes
        if copy is None or copy.seq != each.seq:
            copy = shelf.copies[each.slot] = ReplicaCopy(each.seq, each.epoch)
        copy.epoch = each.epoch
        copy.cut(each.start * shelf.entry_bytes)
        self._nbytes += copy.nbytes - before
        return copy

    async def _send(self, order: SendReplica) -> ReplicaSent:
        shelf = self._shelves.get((order.pipeline, order.stage))
        sent: list[LogRange] = []
        if shelf is not None and shelf.entry_bytes:
            for index, wanted in enumerate(order.ranges):
                copy = shelf.copies.get(wanted.slot)
                if copy is None or copy.seq != wanted.seq:
                    continue
                sound = copy.sound_bytes()
                self.n_rotten += sound < copy.nbytes
                length = min(sound // shelf.entry_bytes, order.trusted(index, copy.epoch))
                if length:
                    sent.append(
                        await ship_log(
                            self.node.ref(order.to),
                            wanted,
                            copy.data[: length * shelf.entry_bytes],
                            layers=(shelf.first, shelf.last),
                            entry_bytes=shelf.entry_bytes,
                            sender=self.me.address,
                        )
                    )
        return ReplicaSent(ranges=tuple(sent))

    def _drop(self, pipeline: int) -> None:
        self.dropped.add(pipeline)
        for key in [key for key in self._shelves if key[0] == pipeline]:
            self._nbytes -= self._shelves.pop(key).nbytes
