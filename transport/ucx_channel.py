"""A channel over a TCP socket and UCX: the socket tells, UCX carries what is large.

Heads and messages up to INLINE_BYTES travel over the socket, whose end is also how a peer's end is
noticed. A message is there when its commit is, which follows its pieces over the socket.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence

from dvrt.buffers import MemoryKind, Region
from dvrt.errors import Corrupted, PeerLost
from dvrt.transport.framing import pack_head
from dvrt.transport.socket_channel import SocketChannel
from dvrt.transport.ucx_link import Link, are_over
from dvrt.transport.ucx_parts import DIRECT_BYTES, Parts
from dvrt.transport.ucx_setup import SetUp
from dvrt.transport.ucx_worker import UcxWorker
from dvrt.transport.vector import Vector
from dvrt.transport.waiting import Waiter

INLINE_BYTES = 256 << 10
"""Regions up to this sum travel over the socket: a grant takes longer than they do."""
_COMMIT = b"\x06"


class UcxChannel(SocketChannel):
    """Owns the socket and the link; takes CUDA memory where UCX does."""

    def __init__(
        self, sock: socket.socket, peer: str, worker: UcxWorker, ours: SetUp, theirs: SetUp
    ) -> None:
        super().__init__(sock, peer)
        self.moves_cuda = worker.moves_cuda
        self._link = Link(worker, ours, theirs, on_change=self._on_change, on_lost=self._on_lost)
        self._hang_up = select.epoll()
        self._hang_up.register(sock.fileno(), select.EPOLLRDHUP)

    def _on_change(self) -> None:
        self._send_waiter.wake()
        self._receive_waiter.wake()

    def _on_lost(self) -> None:
        self._lose(f"{self.peer} cannot be reached by UCX any more")

    def _is_inline(self, sizes: Sequence[int]) -> bool:
        return sum(sizes) <= INLINE_BYTES

    async def _send(
        self, header: bytes, regions: tuple[Region, ...], sizes: list[int], until: float | None
    ) -> None:
        is_inline = self._is_inline(sizes)
        near = [_near(region, is_inline) for region in regions]
        await self._copy(regions, near, self._send_waiter, until)
        if is_inline:
            await super()._send(header, tuple(near), sizes, until)
            return
        self._ensure_peer()
        parts = Parts(near, sizes)
        parts.gather()
        self._is_mid_message = True
        self._link.offer()
        await self._write_all((pack_head(header, sizes),), until)
        await self._peer_does(lambda: self._link.is_granted, until)
        self._link.launch(parts.memory)
        await self._peer_does(lambda: self._link.is_sent, until)
        await self._write_all((_COMMIT,), until)
        self._is_mid_message = False

    async def _peer_does(self, is_done: Callable[[], bool], until: float | None) -> None:
        """Wait for UCX as long as the connection lives, whether or not it is being read."""
        self._loop.add_reader(self._hang_up.fileno(), self._send_waiter.wake)
        try:
            while not is_done():
                self._ensure_peer()
                if self._hang_up.poll(0):
                    raise PeerLost(f"{self.peer} ended the connection")
                await self._send_waiter.wait(until)
                self._ensure_usable()
        finally:
            self._stop_watching()

    def _stop_watching(self) -> None:
        if not self._hang_up.closed:
            self._loop.remove_reader(self._hang_up.fileno())

    async def _fill(self, regions: tuple[Region, ...], until: float | None) -> None:
        sizes = [region.nbytes for region in regions]
        is_inline = self._is_inline(sizes)
        near = [_near(region, is_inline) for region in regions]
        if is_inline:
            await super()._fill(tuple(near), until)
        else:
            await self._land(Parts(near, sizes), until)
        await self._copy(near, regions, self._receive_waiter, until)

    async def _land(self, parts: Parts, until: float | None) -> None:
        self._link.land(parts.memory)
        told = bytearray(len(_COMMIT))
        await self._read(Vector([memoryview(told)]), until)
        if told != _COMMIT:
            raise Corrupted("commit of a message", expected=_COMMIT, got=bytes(told))
        while not self._link.is_received:
            await self._receive_waiter.wait(until)
            self._ensure_usable()
        parts.scatter()

    async def _copy(
        self,
        sources: Sequence[Region],
        targets: Sequence[Region],
        waiter: Waiter,
        until: float | None,
    ) -> None:
        """Between what the caller has and what travels, where these differ."""
        pairs = zip(sources, targets, strict=True)
        differ = [(source, target) for source, target in pairs if source is not target]
        if not differ:
            return
        moves = self._link.copy(*zip(*differ, strict=True))
        while not are_over(moves):
            await waiter.wait(until)
            self._ensure_usable()

    def _drop(self) -> None:
        self._stop_watching()
        self._hang_up.close()
        super()._drop()
        self._link.drop()

    async def quiet(self) -> None:
        """Until UCX has put away what it had begun to move; see ``Link.quiet``."""
        if self._closed or self._broken is not None:  # closing still flushes before it drops
            await self._link.quiet()


def _near(region: Region, is_inline: bool) -> Region:
    """The memory that travels: the region itself, or the host's instead of small CUDA memory."""
    is_far = region.kind is MemoryKind.CUDA and (is_inline or region.nbytes < DIRECT_BYTES)
    return Region.of(bytearray(region.nbytes)) if is_far and region.nbytes else region
