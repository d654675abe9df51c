"""Transports by scheme, imported when they are chosen, and the two verbs that most callers need."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from dvrt.errors import ConfigError
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport

_FACTORIES = {
    "local": ("dvrt.transport.local", "LocalTransport"),
    "tcp": ("dvrt.transport.tcp", "TcpTransport"),
    "shm": ("dvrt.transport.shm", "ShmTransport"),
    "ucx": ("dvrt.transport.ucx", "UcxTransport"),
    "file": ("dvrt.transport.file", "FileTransport"),
    "auto": ("dvrt.transport.auto", "AutoTransport"),
}


def known_schemes() -> tuple[str, ...]:
    return tuple(_FACTORIES)


def split_address(address: str) -> tuple[str, str]:
    """``scheme://rest`` in two. Raises ConfigError when there is no scheme."""
    scheme, separator, rest = address.partition("://")
    if not separator or not scheme:
        raise ConfigError(f"address {address!r}: expected scheme://rest, such as tcp://host:port")
    return scheme, rest


@cache
def get_transport(scheme: str) -> Transport:
    """The transport called ``scheme``. Raises ConfigError naming the known ones."""
    if scheme not in _FACTORIES:
        raise ConfigError(f"transport {scheme!r} is unknown; known: {', '.join(known_schemes())}")
    module, name = _FACTORIES[scheme]
    transport: Transport = getattr(import_module(module), name)()
    return transport


async def connect(address: str, *, deadline_s: float) -> Channel:
    """Open a channel to ``scheme://rest``. Raises ConnectFailed; ConfigError for a bad address."""
    scheme, _ = split_address(address)
    return await get_transport(scheme).connect(address, deadline_s=deadline_s)


async def listen(address: str, handler: ChannelHandler) -> Listener:
    """Accept channels at ``scheme://rest``. Raises ConnectFailed; ConfigError for a bad address."""
    scheme, _ = split_address(address)
    return await get_transport(scheme).listen(address, handler)
