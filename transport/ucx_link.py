"""One channel's way over UCX to its peer: grants, pieces, and what becomes of them at its end.

    sender                                      receiver
      head, over the socket               ->      posts its receives
                                          <-      grant
      pieces                              ->
      commit, over the socket             ->

UCX cannot take back a large send that nobody receives, nor a receive that somebody sends to.
Hence the grant: a sender that was not granted anything has begun nothing and says so (a
retraction), so that the receiver can let go of what it posted. Whatever was begun goes on to its
end when the channel is gone, and ``quiet`` waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

from dvrt.buffers import Region
from dvrt.errors import PeerLost
from dvrt.transport.ucx_peer import UcxPeer, peer_at
from dvrt.transport.ucx_setup import SetUp, this_host
from dvrt.transport.ucx_worker import Move, UcxWorker

READ_AWAY_S = 5.0
"""So long ``quiet`` waits for a peer that may still read what it will not use."""
_PART, _GRANT, _RETRACTION = 0, 1, 2
_NUMBERS = 1 << 14
_CHANNEL_MASK = 0xFFFFFFFF << 32
_YES = bytearray(b"\x01")


def _tag(channel: int, kind: int, number: int = 0, index: int = 0) -> int:
    """channel 32 | kind 2 | number of the message 14 | index of the piece 16 bits."""
    return channel << 32 | kind << 30 | number << 16 | index


class Link:
    """Belongs to one channel, which ``on_change`` wakes and ``on_lost`` ends.

    Asks UCX for nothing until it is used. So a stranger's worker address is not looked at: until
    it has proved itself a peer may send no regions.
    """

    def __init__(
        self,
        worker: UcxWorker,
        ours: SetUp,
        theirs: SetUp,
        *,
        on_change: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._worker, self._ours, self._theirs = worker, ours, theirs
        self._on_change, self._on_lost = on_change, on_lost
        self._peer: UcxPeer | None = None
        self._sent_number = self._received_number = 0
        self._grant: Move | None = None
        self._grant_memory = bytearray(1)
        self._retraction: Move | None = None
        self._retraction_memory = bytearray(1)
        self._sends: list[Move] = []
        self._receives: list[Move] = []
        self._copies: list[Move] = []
        self._is_dropped = self._is_lost = self._is_finished = False
        self._sends_over, self._receives_over = asyncio.Event(), asyncio.Event()

    def _open(self) -> UcxPeer:
        """Raises PeerLost for a peer that is gone already."""
        if self._peer is None:
            self._peer = peer_at(self._worker, ours=self._ours, theirs=self._theirs)
            self._peer.on_lost.add(self._lost)
        return self._peer

    def offer(self) -> None:
        """Before the head is sent: expect a grant."""
        self._open()
        self._sent_number = (self._sent_number + 1) % _NUMBERS
        self._grant_memory[0] = 0
        tag = _tag(self._ours.channel, _GRANT, self._sent_number)
        self._grant = self._worker.receive(Region.of(self._grant_memory), tag, self._changed)

    @property
    def is_granted(self) -> bool:
        return bool(self._grant_memory[0])

    def launch(self, memory: Sequence[Region]) -> None:
        """Send the pieces, which the peer is waiting for."""
        to, first = self._open().endpoint, _tag(self._theirs.channel, _PART, self._sent_number)
        self._grant = None
        self._sends = [
            self._worker.send(to, piece, first + index, self._changed)
            for index, piece in enumerate(memory)
        ]

    @property
    def is_sent(self) -> bool:
        """Whether UCX needs the pieces no more. Raises PeerLost when it failed."""
        return are_over(self._sends)

    def land(self, memory: Sequence[Region]) -> None:
        """Receive the pieces into this memory, and let the peer know."""
        peer, ours = self._open(), self._ours.channel
        number = self._received_number = (self._received_number + 1) % _NUMBERS
        if self._retraction is None:
            into = Region.of(self._retraction_memory)
            self._retraction = self._worker.receive(into, _tag(ours, _RETRACTION), self._changed)
        first = _tag(ours, _PART, number)
        self._receives = [
            self._worker.receive(piece, first + index, self._changed)
            for index, piece in enumerate(memory)
        ]
        grant = _tag(self._theirs.channel, _GRANT, number)
        self._worker.send(peer.endpoint, Region.of(_YES), grant)

    @property
    def is_received(self) -> bool:
        """Whether UCX has put all pieces in place. Raises PeerLost when it failed."""
        return are_over(self._receives)

    def copy(self, sources: Sequence[Region], targets: Sequence[Region]) -> list[Move]:
        """Copy within this process; ``are_over`` tells when the copies are there."""
        self._copies = [move for move in self._copies if not move.is_done]
        pairs = zip(sources, targets, strict=True)
        moves = [self._worker.copy(source, target, self._changed) for source, target in pairs]
        self._copies += moves
        return moves

    def drop(self) -> None:
        """The channel is over; what has begun goes on, and what has not never will."""
        self._is_dropped = True
        if self._grant is not None:
            if not self._is_lost:
                retraction = _tag(self._theirs.channel, _RETRACTION)
                self._worker.send(self._open().endpoint, Region.of(_YES), retraction)
            self._worker.satisfy(self._grant)
        if self._is_lost:
            self._give_up()
        self._review()

    def _changed(self) -> None:
        if self._is_dropped:
            self._review()
        else:
            self._on_change()

    def _lost(self) -> None:
        """The peer's process has ended, or UCX cannot reach it."""
        self._is_lost = True
        if self._is_dropped:
            self._give_up()
        else:
            self._on_lost()

    def _give_up(self) -> None:
        """Nobody else moves our bytes any more; once UCX has had its say, neither does it.

        What it never ends stays with the worker, and so does the memory.
        """
        self._end_receives()
        self._worker.when_dry(self._finish)

    def _end_receives(self) -> None:
        """Nobody will send what has not begun to come."""
        for move in self._receives:
            self._worker.satisfy(move)

    def _review(self) -> None:
        """After the end: see what is over by now."""
        if self._retraction_memory[0]:
            self._end_receives()
        if all(move.is_done for move in self._sends):
            self._sends_over.set()
        if all(move.is_done for move in (*self._receives, *self._copies)):
            self._receives_over.set()
        if self._sends_over.is_set() and self._receives_over.is_set():
            self._finish()

    def _finish(self) -> None:
        self._sends_over.set()
        self._receives_over.set()
        if self._is_finished:
            return
        self._is_finished = True
        if self._peer is not None:
            self._peer.on_lost.discard(self._lost)
        if self._retraction is not None:
            self._worker.satisfy(self._retraction)
        self._worker.forget(self._ours.channel << 32, _CHANNEL_MASK)

    async def quiet(self) -> None:
        """After ``drop``: until nothing writes into this side's memory any more.

        What the peer may still read is waited for READ_AWAY_S at most: a peer that is stopped may
        read it much later, but does not use what was not committed.
        """
        await self._receives_over.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_AWAY_S):
                await self._sends_over.wait()


def are_over(moves: Sequence[Move]) -> bool:
    """Whether UCX is done with all of them. Raises PeerLost when one failed."""
    for move in moves:
        if move.error is not None:
            raise PeerLost(f"UCX: {move.error}") from move.error
    return all(move.is_done for move in moves)


async def describe(worker: UcxWorker) -> SetUp:
    """This end of a new channel."""
    return SetUp(
        ucx_version=worker.version,
        channel=worker.take_channel(),
        pid=os.getpid(),
        host=await asyncio.to_thread(this_host),
        address=worker.address,
    )
