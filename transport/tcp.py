"""``tcp://host:port``: channels between any two processes that reach each other by IP."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from typing import ClassVar

from dvrt.errors import ConfigError, ConnectFailed
from dvrt.transport.accepting import Handlers
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport
from dvrt.transport.registry import split_address
from dvrt.transport.socket_channel import SocketChannel
from dvrt.transport.socket_listener import BACKLOG, SocketListener

Resolved = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


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


def reason(error: OSError) -> str:
    """What the error number means, whatever text the loop gave the error."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


async def _resolve(address: str) -> Resolved:
    """Where the address leads; a name is looked up in a thread, a number needs none."""
    host, port = split_host_port(address)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, name = found[0]
        return family, name  # type: ignore[return-value]
    if version == 4:
        return socket.AF_INET, (host, port)
    return socket.AF_INET6, (host, port, 0, 0)


async def dial(address: str, *, deadline_s: float) -> socket.socket:
    """A connected socket that does not block and sends at once. Raises ConnectFailed."""
    try:
        async with asyncio.timeout(deadline_s):
            return await _dial(address)
    except TimeoutError:
        raise ConnectFailed(f"{address} did not answer within {deadline_s:g} s") from None
    except OSError as error:
        raise ConnectFailed(f"{address}: {reason(error)}") from error


async def _dial(address: str) -> socket.socket:
    family, name = await _resolve(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, name)
        if sock.getsockname() == sock.getpeername():
            # Linux lets a socket connect to its own ephemeral port when nobody listens there.
            raise ConnectFailed(f"{address}: nobody listens there")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except BaseException:
        sock.close()
        raise


async def bind(address: str) -> socket.socket:
    """A listening socket that does not block; port 0 picks a free one. Raises ConnectFailed."""
    try:
        family, where = await _resolve(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed(f"{address}: {reason(error)}") from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConnectFailed(f"cannot listen at {address}: {reason(error)}") from error
    return sock


def _open_channel(sock: socket.socket) -> SocketChannel:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
        return SocketListener(sock, name, lambda it: handlers.start(_open_channel(it)))
