"""``ucx://host:port``: channels whose large regions travel by UCX, between hosts and of any kind.

Needs the extra ``ucx``. Both sides say where their UCX workers are as soon as they are connected;
what UCX then uses is its own choice, and the environment's (UCX_TLS, UCX_NET_DEVICES).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from functools import partial
from typing import ClassVar

from dvrt.errors import ConnectFailed, TransferTimeout
from dvrt.transport.accepting import Handlers
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport
from dvrt.transport.readiness import Readiness
from dvrt.transport.reasons import reason
from dvrt.transport.socket_listener import SocketListener
from dvrt.transport.tcp import bind, dial, join_host_port, split_host_port, tune
from dvrt.transport.ucx_channel import UcxChannel
from dvrt.transport.ucx_link import describe
from dvrt.transport.ucx_setup import FIXED_BYTES, Announced, SetUp
from dvrt.transport.ucx_worker import worker_of_loop
from dvrt.transport.waiting import Waiter

SET_UP_S = 5.0


async def _set_up(sock: socket.socket, peer: str, deadline_s: float) -> UcxChannel:
    """Say where our worker is and hear where theirs is; owns ``sock``.

    Raises ConnectFailed or Corrupted.
    """
    try:
        worker = await worker_of_loop()
        ours = await describe(worker)
        ends_at = asyncio.get_running_loop().time() + deadline_s
        said = ours.pack()
        if sock.send(said) < len(said):
            raise ConnectFailed(f"{peer} takes no {len(said)} bytes")
        theirs = await _hear(sock, ours, ends_at)
        return UcxChannel(sock, peer, worker, ours, theirs)
    except TransferTimeout:
        sock.close()
        raise ConnectFailed(f"{peer} did not answer within {deadline_s:g} s") from None
    except OSError as error:
        sock.close()
        raise ConnectFailed(f"{peer}: {reason(error)}") from error
    except BaseException:
        sock.close()
        raise


async def _hear(sock: socket.socket, ours: SetUp, ends_at: float) -> SetUp:
    """The peer's set-up and not a byte more. Raises as ``_set_up`` does, or OSError."""
    waiter = Waiter("setting up the channel")
    readiness = Readiness(sock.fileno(), waiter.wake)
    readiness.watch(reads=True)

    async def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = sock.recv(size - len(data))
            except BlockingIOError:
                await waiter.wait(ends_at)
                continue
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, "the peer left")
            data += more
        return data

    try:
        announced = Announced.unpack(await read(FIXED_BYTES), ours=ours)
        return announced.complete(await read(announced.address_bytes))
    finally:
        readiness.close()


class UcxTransport(Transport):
    scheme: ClassVar[str] = "ucx"

    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        split_host_port(address)
        await worker_of_loop()
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        sock = await dial(address, deadline_s=deadline_s)
        return await _set_up(sock, address, max(0.0, ends_at - loop.time()))

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        split_host_port(address)
        await worker_of_loop()
        sock = await bind(address)
        handlers = Handlers(handler)

        def accept(sock: socket.socket) -> None:
            tune(sock)
            peer = join_host_port(sock.getpeername(), self.scheme)
            handlers.start_opening(partial(_set_up, sock, peer, SET_UP_S), peer, sock.close)

        return SocketListener(sock, join_host_port(sock.getsockname(), self.scheme), accept)
