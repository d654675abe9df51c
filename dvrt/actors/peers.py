"""A node's links to its peers: accepted and opened, proved, ended together.

One link per peer carries everything that this side sends there; when both sides connect at once
there are two, each used in one direction. They live and die together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from dvrt.actors.limits import Counters, NodeLimits, QueueStatistics
from dvrt.actors.link import Link, Receive
from dvrt.errors import ConfigError, Corrupted, DvrtError, TransportError
from dvrt.transport import Channel, ChannelHandler, Listener
from dvrt.transport.base import Limits
from dvrt.transport.handshake import Hello, greet, welcome

_ADDRESS = "address"
_log = logging.getLogger("dvrt.actors")


class Network(Protocol):
    """What opens channels: a Transport, or ``dvrt.transport``'s own two verbs."""

    async def connect(self, address: str, *, deadline_s: float) -> Channel: ...

    async def listen(self, address: str, handler: ChannelHandler) -> Listener: ...


class Peers:
    """All links of one node. ``lost(address, reason)`` is called when a peer's links end."""

    def __init__(
        self,
        *,
        network: Network,
        hello: Hello,
        secret: bytes,
        limits: NodeLimits,
        counters: Counters,
        receive: Receive,
        lost: Callable[[str, str], None],
    ) -> None:
        self._network, self._secret = network, secret
        self._hello = hello
        self._limits, self._counters = limits, counters
        self._receive, self._lost = receive, lost
        self._links: dict[str, list[Link]] = {}
        self._strangers: dict[Channel, None] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._fenced: dict[str, None] = {}
        self._listener: Listener | None = None
        self._is_closing = False

    @property
    def n_strangers(self) -> int:
        return len(self._strangers)

    async def listen(self, address: str, advertise_host: str | None) -> str:
        """Accept channels from now on; returns the address at which peers reach this node."""
        listener = await self._network.listen(address, self._accept)
        try:
            advertised = _advertised(listener.address, advertise_host)
        except ConfigError:
            await listener.aclose()
            raise
        self._listener = listener
        described = {**self._hello.description, _ADDRESS: advertised}
        self._hello = replace(self._hello, description=described)
        return advertised

    def link(self, address: str) -> Link:
        """The link on which to send to this node; a new one, still connecting, if need be."""
        links = self._links.get(address)
        if links:
            return links[0]
        link = Link(address, self._limits, self._counters)
        self._links[address] = [link]
        if self._is_closing:
            link.end("this node is closing")
            return link
        task = asyncio.get_running_loop().create_task(self._connect(link), name=f"link {address}")
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return link

    def known(self, address: str) -> Link | None:
        """The link on which to send to this node, if there is one."""
        links = self._links.get(address)
        return links[0] if links else None

    def heard_at(self, address: str) -> float | None:
        """When the peer was last heard on any of its links."""
        return max([link.heard_at for link in self._links.get(address, [])], default=None)

    def cut(self, address: str, reason: str) -> None:
        """End the peer's links now; ``lost`` is called if there were any."""
        links = self._links.pop(address, [])
        for link in links:
            link.end(reason)
        if links and not self._is_closing:
            self._lost(address, reason)

    def fence(self, address: str, reason: str) -> None:
        """Cut the peer off for good: this incarnation of it is refused from now on."""
        for link in self._links.get(address, []):
            if link.incarnation is not None:
                self._fenced[link.incarnation] = None
        while len(self._fenced) > self._limits.fenced:
            del self._fenced[next(iter(self._fenced))]
        self.cut(address, reason)

    async def aclose(self) -> None:
        """Accept nothing more, send what was told, say goodbye to everybody."""
        self._is_closing = True
        if self._listener is not None:
            await self._listener.aclose()
        self._drop_strangers()
        links = [link for links in self._links.values() for link in links]
        self._links.clear()
        await asyncio.gather(*(link.aclose("this node was closed") for link in links))
        await self._wait_tasks()

    def abort(self) -> None:
        """End everything now, without goodbyes. ``aclose`` may follow."""
        self._is_closing = True
        self._drop_strangers()
        for links in self._links.values():
            for link in links:
                link.end("this node was aborted")
        for task in list(self._tasks):
            task.cancel()

    def statistics(self) -> dict[str, QueueStatistics]:
        return {address: links[0].statistics() for address, links in self._links.items()}

    def _drop_strangers(self) -> None:
        for channel in self._strangers:
            channel.abort()

    async def _wait_tasks(self) -> None:
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _connect(self, link: Link) -> None:
        try:
            channel = await self._network.connect(link.address, deadline_s=self._limits.connect_s)
            if link.end_reason is not None:  # another one may have taken its place meanwhile
                channel.abort()
                return
            hello = await greet(
                channel, hello=self._hello, secret=self._secret, deadline_s=self._limits.greet_s
            )
        except (DvrtError, MemoryError) as error:
            self._ended(link, f"cannot reach it: {error}")
            return
        if hello.incarnation in self._fenced:
            channel.abort()
            self._ended(link, "it was shut out")
            return
        await self._serve(link, channel, hello)

    async def _accept(self, channel: Channel) -> None:
        """The handler of one accepted channel; runs in a task of the listener's."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = None
        try:
            hello = await self._welcome(channel)
            if hello is None:
                return
            link = Link(hello.description[_ADDRESS], self._limits, self._counters)
            self._links.setdefault(link.address, []).append(link)
            await self._serve(link, channel, hello)
        finally:
            del self._tasks[task]

    async def _welcome(self, channel: Channel) -> Hello | None:
        """What the peer proved to be; None when it did not, which is counted."""
        if self._is_closing or len(self._strangers) >= self._limits.strangers:
            self._counters.refused += 1
            channel.abort()
            return None
        self._strangers[channel] = None
        try:
            return await welcome(
                channel,
                hello=self._hello,
                secret=self._secret,
                deadline_s=self._limits.greet_s,
                check=self._check,
            )
        except TransportError as error:
            self._counters.refused += 1
            _log.info("%s was refused: %s", channel.peer, error)
            return None
        finally:
            del self._strangers[channel]

    def _check(self, hello: Hello) -> None:
        if not hello.description.get(_ADDRESS):
            raise Corrupted("description 'address'", expected="the node's address", got=None)
        if hello.incarnation == self._hello.incarnation:
            raise Corrupted("incarnation", expected="another node", got="this node itself")
        if hello.incarnation in self._fenced:
            raise Corrupted("incarnation", expected="a new one", got="one that was shut out")

    async def _serve(self, link: Link, channel: Channel, hello: Hello) -> None:
        """Open the link and read it to its end."""
        channel.limits = Limits(
            max_regions=self._limits.message_regions,
            max_region_bytes=self._limits.message_region_bytes,
            unacknowledged_s=self._limits.unacknowledged_s,
        )
        self._end_former(link, hello.incarnation)
        if self._is_closing or link.end_reason is not None:
            channel.abort()
            link.end("this node is closing")
            return
        link.open(channel, hello.incarnation)
        try:
            await link.read(self._receive)
        finally:
            self._ended(link, link.end_reason or "reading it failed")

    def _end_former(self, link: Link, incarnation: str) -> None:
        """A peer that has started again is another peer: its former links are over."""
        links = self._links.get(link.address, [])
        former = [each for each in links if each.incarnation not in (None, incarnation)]
        if not former:
            return
        self._links[link.address] = [each for each in links if each not in former]
        for each in former:
            each.end("it was started again")
        self._lost(link.address, "it was started again")

    def _ended(self, link: Link, reason: str) -> None:
        link.end(reason)
        if link in self._links.get(link.address, []):
            self.cut(link.address, link.end_reason or reason)


def _advertised(address: str, host: str | None) -> str:
    """The address that peers use. Raises ConfigError for one that says every host."""
    if host is not None:
        scheme, _, rest = address.partition("://")
        bracketed = f"[{host}]" if ":" in host else host
        return f"{scheme}://{bracketed}:{rest.rpartition(':')[2]}"
    if "://0.0.0.0:" in address or "://[::]:" in address:
        raise ConfigError(f"node address {address}: nobody can reach it; name this host's address")
    return address
