"""Channels over any connected stream socket, driven by the loop's readiness callbacks.

Small messages leave in one write and arrive in one read; large regions are written from and read
into their own memory. Memory is touched in callbacks of the loop alone, so a channel that was
let go is quiet at once. Knows nothing of addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Sequence

from dvrt.buffers import Region
from dvrt.errors import PeerLost
from dvrt.transport.base import DEFAULT_LIMITS, Limits
from dvrt.transport.framing import FrameKind, pack_head
from dvrt.transport.guarded import GuardedChannel
from dvrt.transport.packing import views_of
from dvrt.transport.readiness import Readiness
from dvrt.transport.staging import Staging
from dvrt.transport.vector import Vector

STAGING_BYTES = 128 << 10
"""A channel reads ahead at most so much; what is due beyond it waits for its memory."""
JOIN_BYTES = 32 << 10
"""Messages up to this size are joined and leave in one write."""
FLUSH_S = 1.0
"""How long ``aclose`` waits for a peer that does not read; the kernel goes on after that."""
_VECTOR_COUNT = 512
_DISCARDS = 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class SocketChannel(GuardedChannel):
    """Owns ``sock``, a connected, non-blocking stream socket; belongs to the running loop."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        super().__init__(peer)
        self._sock = sock
        self._limits = DEFAULT_LIMITS
        self._loop = asyncio.get_running_loop()
        self._readiness = Readiness(sock.fileno(), self._on_ready)
        self._staging = Staging(STAGING_BYTES)
        self._targets = Vector()
        self._outgoing = Vector()
        self._is_mid_message = False
        self._end: PeerLost | None = None
        self._is_flushed = False
        try:
            self._readiness.watch(reads=True)
        except BaseException:
            self._readiness.close()
            raise

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        is_tcp = self._sock.family in (socket.AF_INET, socket.AF_INET6)
        if is_tcp and hasattr(socket, "TCP_USER_TIMEOUT") and self._sock.fileno() >= 0:
            timeout_ms = int(limits.unacknowledged_s * 1000)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)

    async def _next(self, until: float | None) -> tuple[bytes, tuple[int, ...]]:
        while (head := self._staging.head(self._limits)) is None:
            self._ensure_peer()
            self._readiness.watch(reads=True)
            await self._receive_waiter.wait(until)
            self._ensure_usable()
        prefix, header, sizes = head
        if prefix.kind == FrameKind.GOODBYE:
            raise PeerLost(f"{self.peer} closed the channel")
        return header, sizes

    async def _fill(self, regions: tuple[Region, ...], until: float | None) -> None:
        await self._read(Vector(views_of(regions)), until)

    def _is_inline(self, sizes: Sequence[int]) -> bool:
        """Whether regions of these sizes follow their head on the socket."""
        return True

    def _take_here(self, sizes: tuple[int, ...]) -> list[bytearray] | None:
        if not self._is_inline(sizes) or sum(sizes) > len(self._staging):
            return None
        return [self._staging.take(size) for size in sizes]

    async def _read(self, targets: Vector, until: float | None) -> None:
        """The next bytes of the stream, straight into the targets."""
        self._staging.drain_into(targets)
        if not targets.nbytes:
            return
        self._targets = targets
        try:
            self._on_readable()
            while targets.nbytes:
                self._ensure_peer()
                self._readiness.watch(reads=True)
                await self._receive_waiter.wait(until)
                self._ensure_usable()
        finally:
            self._targets = Vector()

    def _on_ready(self) -> None:
        if self._readiness.writes:
            self._on_writable()
        if self._readiness.reads:
            self._on_readable()

    def _on_readable(self) -> None:
        staging, targets = self._staging, self._targets
        is_filling = targets.nbytes > 0
        room = staging.room()
        if not is_filling and not room:
            self._readiness.watch(reads=False)
            return
        try:
            if is_filling:
                count = self._read_into(targets, room)
            else:
                count = self._sock.recv_into(room)
                staging.added(count)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(f"{self.peer} was lost: {error}", error)
            return
        if not count:
            self._lose(f"{self.peer} ended the connection without a goodbye")
        elif not targets.nbytes if is_filling else len(staging) >= staging.needed:
            self._receive_waiter.wake()

    def _read_into(self, targets: Vector, room: memoryview) -> int:
        """Read into the regions that wait, and what follows them into staging."""
        buffers = targets.next(_VECTOR_COUNT)
        if len(buffers) < _VECTOR_COUNT:
            buffers.append(room)
        count = self._sock.recvmsg_into(buffers)[0]
        wanted = min(count, targets.nbytes)
        targets.advance(wanted)
        self._staging.added(count - wanted)
        return count

    async def _send(
        self, header: bytes, regions: tuple[Region, ...], sizes: list[int], until: float | None
    ) -> None:
        self._ensure_peer()
        await self._write_all(self._pack(header, regions, sizes), until)

    async def _write_all(self, buffers: Sequence[bytes | memoryview], until: float | None) -> None:
        written = self._write(buffers[:_VECTOR_COUNT])
        if len(buffers) == 1 and written == len(buffers[0]):
            return
        outgoing = self._outgoing = Vector([memoryview(buffer) for buffer in buffers])
        outgoing.advance(written)
        try:
            while outgoing.nbytes:
                self._ensure_peer()
                self._readiness.watch(writes=True)
                await self._send_waiter.wait(until)
                self._ensure_usable()
            self._ensure_peer()
        finally:
            self._outgoing = Vector()
            self._readiness.watch(writes=False)

    @staticmethod
    def _pack(
        header: bytes, regions: tuple[Region, ...], sizes: list[int]
    ) -> Sequence[bytes | memoryview]:
        """The message as the buffers that are written, a small one as a single buffer."""
        if not regions:
            return (pack_head(header, ()),)
        views: list[bytes | memoryview] = [pack_head(header, sizes)]
        views += views_of(regions)
        return (b"".join(views),) if sum(sizes) <= JOIN_BYTES else views

    def _write(self, buffers: Sequence[bytes | memoryview]) -> int:
        """One write; how much the socket took of it."""
        try:
            if len(buffers) == 1:
                return self._sock.send(buffers[0])
            return self._sock.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._lose(f"{self.peer} was lost: {error}", error)
            return 0

    def _on_writable(self) -> None:
        outgoing = self._outgoing
        outgoing.advance(self._write(outgoing.next(_VECTOR_COUNT)))
        if not outgoing.nbytes:
            self._readiness.watch(writes=False)
            self._send_waiter.wake()

    def _lose(self, reason: str, cause: OSError | None = None) -> None:
        """The connection is over; what arrived before may still be received."""
        self._end = PeerLost(reason)
        self._end.__cause__ = cause
        self._readiness.close()
        self._receive_waiter.wake()
        self._send_waiter.wake()

    def _ensure_peer(self) -> None:
        if self._end is not None:
            raise PeerLost(str(self._end)) from self._end.__cause__

    async def _finish(self) -> None:
        self._readiness.watch(reads=False)
        if self._outgoing.nbytes or self._is_mid_message or self._end is not None:
            return  # in the middle of a message the peer is not to take this for a part of it
        goodbye = Vector([memoryview(pack_head(b"", (), FrameKind.GOODBYE))])
        with contextlib.suppress(OSError):
            await self._flush(goodbye)
            self._is_flushed = not goodbye.nbytes

    async def _flush(self, goodbye: Vector) -> None:
        """Say goodbye and wait for the peer's kernel to have everything, at most FLUSH_S.

        Input is thrown away meanwhile: what comes after the close resets the connection, and with
        it what the peer has not received. The kernel tells of an empty send queue only when asked.
        """
        give_up_at, pause_s = self._loop.time() + FLUSH_S, 0.001
        while self._loop.time() < give_up_at:
            if goodbye.nbytes:
                self._say(goodbye)
            if self._discard_input() or (not goodbye.nbytes and not _unsent_bytes(self._sock)):
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)

    def _say(self, goodbye: Vector) -> None:
        with contextlib.suppress(BlockingIOError):
            goodbye.advance(self._sock.send(goodbye.next(1)[0]))

    def _discard_input(self) -> bool:
        """Throw away what has come; True when the peer said its last."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_DISCARDS):
                if not self._sock.recv(STAGING_BYTES):
                    return True
        return False

    def _drop(self) -> None:
        self._readiness.close()
        self._targets.clear()
        self._outgoing.clear()
        if not self._is_flushed:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._sock.close()


def _unsent_bytes(sock: socket.socket) -> int:
    """Bytes the peer's kernel has not acknowledged; a local socket's peer has them at once."""
    if sock.family == socket.AF_UNIX:
        return 0
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])
