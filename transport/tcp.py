"""``tcp://host:port``: channels between any two processes that reach each other by IP."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from contextlib import suppress
from typing import ClassVar

from dvrt.errors import ConfigError, ConnectFailed
from dvrt.transport.accepting import Handlers
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport
from dvrt.transport.reasons import reason
from dvrt.transport.registry import split_address
from dvrt.transport.socket_channel import SocketChannel
from dvrt.transport.socket_listener import BACKLOG, SocketListener

Resolved = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What it means to listen at an address that other machines have, or none."""


KEEPALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPALIVE": 3, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5}
"""Seconds and tries after which the kernel gives up a peer whose host has vanished, though nobody
sends: a channel that only waits would wait for ever. Systems name the first one differently. Where
``Limits.unacknowledged_s`` is set, Linux goes by that in place of the count."""


def split_host_port(address: str) -> tuple[str, int]:
    """Host and port of ``scheme://host:port`` (IPv6 in brackets). Raises ConfigError."""
    scheme, rest = split_address(address)
    host, separator, port = rest.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"address {address!r}: expected {scheme}://host:port with a port below 65536"
        )
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)


def join_host_port(name: tuple[str, int] | tuple[str, int, int, int], scheme: str = "tcp") -> str:
    host, port = name[0], name[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _resolve(address: str) -> list[Resolved]:
    """Where the address leads, best first; a name is looked up in a thread, a number needs none."""
    host, port = split_host_port(address)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return await _look_up(address, host, port)
    if version == 4:
        return [(socket.AF_INET, (host, port))]
    return [(socket.AF_INET6, (host, port, 0, 0))]


async def _look_up(address: str, host: str, port: int) -> list[Resolved]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise ConfigError(f"address {address!r}: {host!r} is no name of a machine") from error
    return [(family, name) for family, _, _, _, name in found]  # type: ignore[misc]


async def dial(address: str, *, deadline_s: float) -> socket.socket:
    """A connected socket that does not block and sends at once. Raises ConnectFailed.

    A name's addresses are tried in turn, each for its share of the time that is left.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await _dial(address, asyncio.get_running_loop().time() + deadline_s)
    except TimeoutError:
        raise ConnectFailed(f"{address} did not answer within {deadline_s:g} s") from None
    except OSError as error:
        raise ConnectFailed(f"{address}: {reason(error)}") from error


async def _dial(address: str, until: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    *others, last = await _resolve(address)
    for n_left, where in zip(range(len(others) + 1, 1, -1), others, strict=True):
        with suppress(OSError, ConnectFailed):  # TimeoutError is an OSError, too
            async with asyncio.timeout((until - loop.time()) / n_left):
                return await _dial_one(address, where)
    return await _dial_one(address, last)


async def _dial_one(address: str, where: Resolved) -> socket.socket:
    family, name = where
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, name)
        if sock.getsockname() == sock.getpeername():
            # Linux lets a socket connect to its own ephemeral port when nobody listens there.
            raise ConnectFailed(f"{address}: nobody listens there")
        tune(sock)
        return sock
    except BaseException:
        sock.close()
        raise


def tune(sock: socket.socket) -> None:
    """Small messages leave at once, and a host that has vanished is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not every system has them all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def bind(address: str) -> socket.socket:
    """A listening socket that does not block; port 0 picks a free one. Raises ConnectFailed.

    Of a name's addresses it is the first that this machine has.
    """
    try:
        *others, last = await _resolve(address)
        for where in others:
            try:
                return _bind_one(where)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
        return _bind_one(last)
    except OSError as error:
        raise ConnectFailed(f"cannot listen at {address}: {reason(error)}") from error


def _bind_one(where: Resolved) -> socket.socket:
    family, name = where
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _open_channel(sock: socket.socket) -> SocketChannel:
    return SocketChannel(sock, join_host_port(sock.getpeername()))


class TcpTransport(Transport):
    scheme: ClassVar[str] = "tcp"

    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        sock = await dial(address, deadline_s=deadline_s)
        try:
            return _open_channel(sock)
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"{address}: {reason(error)}") from error

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        sock = await bind(address)
        handlers = Handlers(handler)
        name = join_host_port(sock.getsockname())

        def accept(sock: socket.socket) -> None:
            tune(sock)
            handlers.start(_open_channel(sock))

        return SocketListener(sock, name, accept)
