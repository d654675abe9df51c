"""``shm://name``: channels between processes of one host, through memory that both map.

Names live in Linux's abstract namespace, so nothing is left of them, and only processes of the
same user are let in. Both sides send the descriptors of their memory and bell right away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import struct
from functools import partial
from typing import ClassVar

from dvrt.errors import ConfigError, ConnectFailed, Corrupted, TransferTimeout
from dvrt.transport.accepting import Handlers
from dvrt.transport.arena import Arena, PeerArena
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport
from dvrt.transport.bell import Bell
from dvrt.transport.readiness import Readiness
from dvrt.transport.reasons import reason
from dvrt.transport.registry import split_address
from dvrt.transport.shm_channel import ShmChannel
from dvrt.transport.socket_listener import BACKLOG, SocketListener
from dvrt.transport.waiting import Waiter

ARENA_BYTES = 256 << 20
"""In flight in one direction at most; memory is taken only as it is used."""
SET_UP_S = 5.0
MAX_NAME_BYTES = 90
_SET_UP = struct.Struct("!4sHHQ")
_MAGIC, _VERSION = b"dvsm", 1
_CREDENTIALS = struct.Struct("3i")
_RETRY_S = 0.005


def _socket_name(address: str) -> tuple[str, str]:
    """The name in ``shm://name`` and the socket's, which no file stands for."""
    _, name = split_address(address)
    if len(name.encode()) > MAX_NAME_BYTES or "\0" in name:
        raise ConfigError(f"address {address!r}: a name has at most {MAX_NAME_BYTES} bytes")
    return name, f"\0dvrt-shm/{name}"


def _ensure_same_user(sock: socket.socket) -> int:
    """The peer's process id. Raises PermissionError for a peer of another user."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != os.geteuid():
        raise PermissionError(errno.EACCES, f"the peer belongs to user {uid}")
    return int(pid)


async def _set_up(
    sock: socket.socket, peer: str, arena_bytes: int, deadline_s: float
) -> ShmChannel:
    """Exchange memory with the peer; owns ``sock``. Raises ConnectFailed or Corrupted."""
    with contextlib.ExitStack() as undo:
        undo.callback(sock.close)
        try:
            arena = Arena(arena_bytes)
            undo.callback(arena.close)
            bell = Bell()
            undo.callback(bell.close)
            set_up = _SET_UP.pack(_MAGIC, _VERSION, 0, arena_bytes)
            socket.send_fds(sock, [set_up], [arena.fd, bell.fd])
            arena.close_fd()
            await _readable(sock, deadline_s)
            peer_arena, peer_bell = _receive_set_up(sock)
            undo.callback(peer_arena.close)
            bell.join(peer_bell, sock.fileno())
            channel = ShmChannel(sock, peer, arena, peer_arena, bell)
        except TransferTimeout:
            raise ConnectFailed(f"{peer} did not answer within {deadline_s:g} s") from None
        except OSError as error:
            raise ConnectFailed(f"{peer}: {reason(error)}") from error
        undo.pop_all()
        return channel


async def _readable(sock: socket.socket, deadline_s: float) -> None:
    loop = asyncio.get_running_loop()
    waiter = Waiter("setting up the channel")
    readiness = Readiness(sock.fileno(), waiter.wake)
    try:
        readiness.watch(reads=True)
        await waiter.wait(loop.time() + deadline_s)
    finally:
        readiness.close()


def _receive_set_up(sock: socket.socket) -> tuple[PeerArena, int]:
    """The peer's arena, mapped, and its bell. Raises Corrupted, or OSError for a lost peer."""
    data, fds, _, _ = socket.recv_fds(sock, _SET_UP.size, 2, socket.MSG_CMSG_CLOEXEC)
    with contextlib.ExitStack() as undo:
        for fd in fds:
            undo.callback(os.close, fd)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the peer left")
        if len(data) != _SET_UP.size or len(fds) != 2:
            raise Corrupted("set-up of a channel", expected=_SET_UP.size, got=len(data))
        magic, version, _, capacity = _SET_UP.unpack(data)
        if (magic, version) != (_MAGIC, _VERSION):
            raise Corrupted(
                "set-up of a channel", expected=(_MAGIC, _VERSION), got=(magic, version)
            )
        peer_arena = PeerArena(fds[0], capacity)
        undo.pop_all()
        os.close(fds[0])
        return peer_arena, fds[1]


class ShmTransport(Transport):
    """``arena_bytes`` is what this side may have in flight on each channel."""

    scheme: ClassVar[str] = "shm"

    def __init__(self, arena_bytes: int = ARENA_BYTES) -> None:
        self._arena_bytes = arena_bytes

    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        _, path = _socket_name(address)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        sock = _open_socket(address)
        try:
            while not _try_connect(sock, path, address):
                if loop.time() > ends_at:
                    raise ConnectFailed(f"{address} did not answer within {deadline_s:g} s")
                await asyncio.sleep(_RETRY_S)
        except BaseException:
            sock.close()
            raise
        remaining_s = max(0.0, ends_at - loop.time())
        return await _set_up(sock, address, self._arena_bytes, remaining_s)

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        name, path = _socket_name(address)
        if not name:
            return await self.listen(f"shm://{secrets.token_hex(8)}", handler)
        handlers = Handlers(handler)

        def accept(sock: socket.socket) -> None:
            peer = f"{address}#{_ensure_same_user(sock)}"
            opening = partial(_set_up, sock, peer, self._arena_bytes, SET_UP_S)
            handlers.start_opening(opening, peer, sock.close)

        sock = _open_socket(address)
        try:
            sock.bind(path)
            sock.listen(BACKLOG)
            return SocketListener(sock, address, accept)
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"cannot listen at {address}: {reason(error)}") from error


def _open_socket(address: str) -> socket.socket:
    """One that does not block. Raises ConnectFailed."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed(f"{address}: {reason(error)}") from error
    sock.setblocking(False)
    return sock


def _try_connect(sock: socket.socket, path: str, address: str) -> bool:
    """Whether it worked; False while the listener's queue is full. Raises ConnectFailed."""
    try:
        sock.connect(path)
        _ensure_same_user(sock)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConnectFailed(f"{address}: {reason(error)}") from error
    return True
