"""``local://name``: channels between tasks of one event loop, bounded and deterministic.

Only futures of the running loop are used, so a loop with virtual time runs it as well. A message
that fits the window is copied when it is sent; a larger one is copied once, when it is received.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar
from weakref import WeakKeyDictionary

from dvrt.buffers import Region
from dvrt.errors import ConnectFailed, PeerLost, TransportError
from dvrt.transport.accepting import Handlers
from dvrt.transport.base import Channel, ChannelHandler, Listener, Transport
from dvrt.transport.framing import check_limits
from dvrt.transport.guarded import GuardedChannel
from dvrt.transport.registry import split_address
from dvrt.transport.waiting import Waiter

WINDOW_BYTES = 1 << 20
WINDOW_MESSAGES = 1024


@dataclass(slots=True, eq=False)
class _Message:
    header: bytes
    parts: list[memoryview]
    cost: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple([part.nbytes for part in self.parts])


class _Pipe:
    """One direction: the messages that were sent and not yet received."""

    def __init__(self) -> None:
        self.messages: deque[_Message] = deque()
        self.cost = 0
        self.end: TransportError | None = None
        self.is_cut = False
        self.waiters: list[Waiter] = []

    def has_room(self, cost: int) -> bool:
        if not self.messages:
            return True
        return self.cost + cost <= WINDOW_BYTES and len(self.messages) < WINDOW_MESSAGES

    def push(self, message: _Message) -> None:
        self.messages.append(message)
        self.cost += message.cost
        self._wake()

    def pop(self) -> None:
        self.cost -= self.messages.popleft().cost
        self._wake()

    def finish(self, error: TransportError) -> None:
        """No more messages come; those that are there may still be received."""
        if self.end is None:
            self.end = error
        self._wake()

    def cut(self, error: TransportError) -> None:
        """No more messages come, and those that are there are lost."""
        self.is_cut = True
        self.messages.clear()
        self.cost = 0
        self.finish(error)

    def _wake(self) -> None:
        for waiter in self.waiters:
            waiter.wake()


class LocalChannel(GuardedChannel):
    """One end of a pair of pipes."""

    def __init__(self, peer: str, out: _Pipe, into: _Pipe) -> None:
        super().__init__(peer)
        self._out, self._in = out, into
        out.waiters.append(self._send_waiter)
        into.waiters.append(self._receive_waiter)

    async def _send(
        self, header: bytes, regions: tuple[Region, ...], sizes: list[int], until: float | None
    ) -> None:
        out = self._out
        parts = [region.view() for region in regions]
        cost = len(header) + sum(sizes)
        self._ensure_peer(out)
        while not out.has_room(cost):
            await self._send_waiter.wait(until)
            self._ensure_peer(out)
        if cost <= WINDOW_BYTES:
            out.push(_Message(bytes(header), [memoryview(bytes(part)) for part in parts], cost))
        else:
            await self._lend(_Message(bytes(header), parts, cost), until)

    async def _lend(self, message: _Message, until: float | None) -> None:
        """Offer the sender's own memory until the peer has copied it."""
        out = self._out
        out.push(message)
        try:
            while out.messages and out.messages[0] is message:
                await self._send_waiter.wait(until)
                self._ensure_usable()
        except BaseException:
            out.cut(PeerLost("the peer gave up in the middle of a message"))
            raise
        if out.is_cut:
            self._ensure_peer(out)

    async def _next(self, until: float | None) -> tuple[bytes, tuple[int, ...]]:
        while not self._in.messages:
            self._ensure_peer(self._in)
            await self._receive_waiter.wait(until)
            self._ensure_usable()
        message = self._in.messages[0]
        sizes = message.sizes
        check_limits(
            self.limits,
            header_bytes=len(message.header),
            region_count=len(sizes),
            region_bytes=sum(sizes),
        )
        if not sizes:
            self._in.pop()
        return message.header, sizes

    async def _fill(self, regions: tuple[Region, ...], until: float | None) -> None:
        if not self._in.messages:
            self._ensure_peer(self._in)
        for region, part in zip(regions, self._in.messages[0].parts, strict=True):
            if part.nbytes:
                region.view()[:] = part
        self._in.pop()

    def _ensure_peer(self, pipe: _Pipe) -> None:
        self._ensure_usable()
        if pipe.end is not None:
            raise PeerLost(str(pipe.end))

    async def _finish(self) -> None:
        self._out.finish(PeerLost("the peer closed the channel"))

    def _drop(self) -> None:
        if self._out.end is None:
            self._out.cut(PeerLost("the peer ended the channel abruptly"))
        self._in.cut(self._out.end or PeerLost("the peer ended the channel abruptly"))


@dataclass(slots=True, eq=False)
class _Names:
    """The listeners of one event loop."""

    listeners: dict[str, LocalListener] = field(default_factory=dict)
    fresh: count[int] = field(default_factory=lambda: count(1))


class LocalListener(Listener):
    def __init__(self, names: _Names, name: str, handler: ChannelHandler) -> None:
        self.address = f"local://{name}"
        self._names, self._name = names, name
        self._handlers = Handlers(handler)
        self._accepted = count(1)
        names.listeners[name] = self

    def accept(self) -> LocalChannel:
        """The client's end of a new channel, whose other end went to the handler."""
        there, back = _Pipe(), _Pipe()
        client = LocalChannel(self.address, out=there, into=back)
        number = next(self._accepted)
        self._handlers.start(LocalChannel(f"{self.address}#{number}", out=back, into=there))
        return client

    async def aclose(self) -> None:
        if self._names.listeners.get(self._name) is self:
            del self._names.listeners[self._name]


class LocalTransport(Transport):
    """Names belong to the running loop: two loops never see each other's listeners."""

    scheme: ClassVar[str] = "local"

    def __init__(self) -> None:
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Names] = WeakKeyDictionary()

    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        _, name = split_address(address)
        listener = self._names().listeners.get(name)
        if listener is None:
            raise ConnectFailed(f"nobody listens at {address} in this event loop")
        return listener.accept()

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        _, name = split_address(address)
        names = self._names()
        if not name:
            name = next(f"auto-{n}" for n in names.fresh if f"auto-{n}" not in names.listeners)
        if name in names.listeners:
            raise ConnectFailed(f"{address} is taken by another listener of this event loop")
        return LocalListener(names, name, handler)

    def _names(self) -> _Names:
        return self._loops.setdefault(asyncio.get_running_loop(), _Names())
