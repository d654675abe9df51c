"""Sends what a stage ships to the stages of other pipelines: each gets the layers that it holds.

Lives on the event loop; compute hands items over from whatever thread it has.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from dvrt.actors.ref import ActorRef
from dvrt.buffers import Region
from dvrt.errors import ActorError, ActorGone, TransportError
from dvrt.protocol.messages import PipelineAddress, StageAddress
from dvrt.stages.cargo import Cargo, Sealed
from dvrt.stages.copy_log import CopyLog
from dvrt.stages.lane import Lane
from dvrt.stages.shipping import LogStream

HELD_BYTES = 64 << 20
"""At most this much waits packed; further pieces are packed when they are sent."""
COMMIT_TRIES = 3
COMMIT_PAUSE_S = 0.25
"""A commit that cannot be sent is tried again: without it nobody learns what else was lost."""
UNREACHED_PAUSE_S = 1.0
"""How often a target that cannot be reached is told of, at most."""
MAX_SIGHTINGS = 4096

Pack = Callable[[Cargo], Awaitable[Any]]
"""Packs a cargo on the compute; None when its log is not there any more."""


class _Target:
    """One stage that logs are shipped to."""

    def __init__(self, ref: ActorRef, address: StageAddress, lane: Lane[Cargo | Sealed]) -> None:
        self.ref = ref
        self.first, self.last = address.first, address.stop
        self.lane = lane
        self.streams: dict[int, LogStream] = {}
        self.missed_at = -math.inf

    def part_of(self, item: Cargo | Sealed) -> Cargo | Sealed | None:
        first, last = max(self.first, item.first), min(self.last, item.last)
        if first >= last:
            return None
        if (first, last) == (item.first, item.last):
            return item
        return replace(item, first=first, last=last)


class Shipper:
    """The outlet of a stage's executor. Bounded by ``HELD_BYTES`` of packed pieces; items that
    are not packed are small, and there are as many as the steps in flight have asked for.

    ``sightings`` are the latest (what, layer, seconds): a layer's entries were ``packed``, that is
    computed, or ``sent``, that is given to the transport.
    """

    def __init__(
        self,
        me: ActorRef,
        *,
        make_ref: Callable[[str], ActorRef],
        pack: Pack,
        entry_bytes: Callable[[int, int], int],
        copies: CopyLog,
        on_failure: Callable[[BaseException], None],
        on_unreached: Callable[[str, str], None],
    ) -> None:
        """``on_unreached`` is told, now and then, which actor has no link to it, and why."""
        self._me, self._copies = me, copies
        self._make_ref, self._pack, self._entry_bytes = make_ref, pack, entry_bytes
        self._on_failure, self._on_unreached = on_failure, on_unreached
        self._loop = asyncio.get_running_loop()
        self._pipelines: dict[int, list[_Target]] = {}
        self._targets: dict[str, _Target] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._n_streams = 0
        self._given = self._gone = 0
        self.sightings: deque[tuple[str, int, float]] = deque(maxlen=MAX_SIGHTINGS)

    # On the compute.

    def has_room(self, nbytes: int) -> bool:
        return self._given - self._gone + nbytes <= HELD_BYTES

    def put(self, item: Cargo | Sealed) -> None:
        if isinstance(item, Cargo) and item.packed is not None:
            self._given += Region.of(item.packed).nbytes
            self.sightings.append(("packed", item.first, time.monotonic()))
        self._loop.call_soon_threadsafe(self._take, item)

    # On the loop.

    def connect(self, pipelines: tuple[PipelineAddress, ...]) -> None:
        """These are the pipelines that logs may go to; what waits for others is dropped."""
        wanted = {stage.actor: stage for each in pipelines for stage in each.stages}
        for actor in [actor for actor in self._targets if actor not in wanted]:
            self._drop(self._targets.pop(actor))
        for actor, address in wanted.items():
            if actor not in self._targets:
                self._targets[actor] = self._open(address)
        self._pipelines = {
            each.pipeline: [self._targets[stage.actor] for stage in each.stages]
            for each in pipelines
        }

    def abort(self) -> None:
        """Send nothing more, and wait for nothing."""
        self.connect(())

    async def aclose(self) -> None:
        self.abort()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _open(self, address: StageAddress) -> _Target:
        ref = self._make_ref(address.actor)
        lane: Lane[Cargo | Sealed] = Lane(
            address.actor, lambda item: self._send(target, item), self._on_failure
        )
        target = _Target(ref, address, lane)
        return target

    def _drop(self, target: _Target) -> None:
        for item in target.lane.close():
            self._done(item)
        self._ending.add(target.lane.task)
        target.lane.task.add_done_callback(self._ending.discard)

    def _take(self, item: Cargo | Sealed) -> None:
        is_wanted = False
        for target in self._pipelines.get(item.to, ()):
            part = target.part_of(item)
            if part is not None:
                is_wanted = True
                target.lane.put(part)
        if not is_wanted:
            self._done(item)

    def _done(self, item: Cargo | Sealed) -> None:
        """Its bytes are held no longer; packed cargo is of one layer, and so of one target."""
        if isinstance(item, Cargo) and item.packed is not None:
            self._gone += Region.of(item.packed).nbytes

    async def _send(self, target: _Target, item: Cargo | Sealed) -> None:
        try:
            stream = self._stream(target, item)
            if isinstance(item, Sealed):
                await self._commit(target, stream, item)
            elif item.packed is not None:
                await self._send_piece(target, stream, item)
            else:
                for piece in item.pieces(self._entry_bytes(item.first, item.last)):
                    await self._send_piece(target, stream, piece)
        except ActorGone as error:
            self._missed(target, str(error))
            raise
        finally:
            self._done(item)

    def _missed(self, target: _Target, reason: str) -> None:
        now = self._loop.time()
        if now - target.missed_at >= UNREACHED_PAUSE_S:
            target.missed_at = now
            self._on_unreached(str(target.ref), reason)

    def _stream(self, target: _Target, item: Cargo | Sealed) -> LogStream:
        """That of the item's log; a newer log for the same slot begins another."""
        stream = target.streams.get(item.target)
        if stream is None or (stream.seq, stream.epoch) != (item.seq, item.epoch):
            self._n_streams += 1
            sender = f"{self._me}#{self._n_streams}"
            stream = target.streams[item.target] = LogStream(
                slot=item.target, seq=item.seq, epoch=item.epoch, sender=sender
            )
        return stream

    async def _send_piece(self, target: _Target, stream: LogStream, piece: Cargo) -> None:
        if stream.is_broken:
            return
        packed = piece.packed if piece.packed is not None else await self._pack(piece)
        if packed is None:
            stream.is_broken = True
            return
        region = Region.of(packed)
        entries = stream.entries((piece.first, piece.last), piece.start, piece.stop, region)
        began = self._copies.clock.time()
        await target.ref.tell(entries, region)
        name = f"{stream.seq} layers {piece.first} to {piece.last - 1}"
        self._copies.add(f"ships to {target.ref.name}", name, began, region.nbytes)
        self.sightings.append(("sent", piece.first, time.monotonic()))

    async def _commit(self, target: _Target, stream: LogStream, sealed: Sealed) -> None:
        if stream.is_broken:
            return
        commit = stream.commit((sealed.first, sealed.last), sealed.length)
        for n_left in reversed(range(COMMIT_TRIES)):
            try:
                await target.ref.tell(commit)
            except (ActorError, TransportError):
                if not n_left:
                    raise
                await asyncio.sleep(COMMIT_PAUSE_S)
            else:
                return
