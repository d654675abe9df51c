"""``auto://host:port``: the best way to a peer, wherever it turns out to be.

A listener is there in three ways at once and its address says so: ``auto://host:port/token@where``.
Whoever connects takes ``local`` in the same event loop, ``shm`` on the same host, else ``tcp``;
``channel.peer`` and the log tell which.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import secrets
from pathlib import Path
from typing import ClassVar, NamedTuple

from dvrt.errors import ConfigError, ConnectFailed
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport
from dvrt.transport.registry import get_transport

_ADDRESS = re.compile(r"auto://(?P<place>[^/]+)(?:/(?P<token>[0-9a-f]+)@(?P<where>[0-9a-f.-]+))?")
_log = logging.getLogger("dvrt.transport")


class _Address(NamedTuple):
    place: str
    token: str | None
    where: str | None


def _parse(address: str) -> _Address:
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ConfigError(
            f"address {address!r}: expected auto://host:port, or what a listener's address says"
        )
    return _Address(found["place"], found["token"], found["where"])


@functools.cache
def here() -> str:
    """Names this kernel, network namespace and user: within them shared memory can be reached."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/net').st_ino}.{os.geteuid()}"


class AutoListener(Listener):
    def __init__(self, address: str, listeners: list[Listener]) -> None:
        self.address = address
        self._listeners = listeners

    async def aclose(self) -> None:
        for listener in self._listeners:
            await listener.aclose()


class AutoTransport(Transport):
    scheme: ClassVar[str] = "auto"

    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        parsed = _parse(address)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        for way in await self._ways(parsed):
            scheme = way.partition(":")[0]
            remaining_s = max(0.0, ends_at - loop.time())
            try:
                channel = await get_transport(scheme).connect(way, deadline_s=remaining_s)
            except ConnectFailed as error:
                _log.info("%s: not by %s: %s", address, scheme, error)
                failure = error
            else:
                _log.info("%s: by %s", address, scheme)
                return channel
        raise ConnectFailed(f"{address}: {failure}") from failure

    async def _ways(self, address: _Address) -> list[str]:
        ways = []
        if address.token is not None:
            ways.append(f"local://{address.token}")
            if address.where == await asyncio.to_thread(here):
                ways.append(f"shm://{address.token}")
        return [*ways, f"tcp://{address.place}"]

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        parsed = _parse(address)
        token = parsed.token or secrets.token_hex(8)
        listeners: list[Listener] = []
        try:
            for way in (f"tcp://{parsed.place}", f"shm://{token}", f"local://{token}"):
                transport = get_transport(way.partition(":")[0])
                listeners.append(await transport.listen(way, handler))
            where = await asyncio.to_thread(here)
        except BaseException:
            for listener in listeners:
                await listener.aclose()
            raise
        place = listeners[0].address.removeprefix("tcp://")
        return AutoListener(f"auto://{place}/{token}@{where}", listeners)
