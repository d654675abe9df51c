"""A link: one channel between this node and another, for messages both ways.

Sends at once, in the caller's turn, while nothing waits; otherwise through a bounded outbox and a
writer task. Knows channels and bytes, not actors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from dvrt.actors.bounded import BoundedQueue
from dvrt.actors.limits import Counters, NodeLimits, QueueStatistics
from dvrt.actors.started import Started, begin
from dvrt.buffers import Region
from dvrt.errors import ActorGone, OutOfMemory, TransferTimeout, TransportError
from dvrt.transport import Channel

Receive = Callable[["Link", bytes, list[bytearray]], "asyncio.Future[bool] | None"]
"""Takes a header and its attachments; a future when there is no room for them yet."""


@dataclass(slots=True, eq=False)
class _Parcel:
    """One message on its way out; ``sent`` is there when somebody waits for its regions."""

    header: bytes
    regions: tuple[Region, ...]
    nbytes: int = field(init=False)
    sent: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        self.nbytes = len(self.header) + sum([region.nbytes for region in self.regions])


class Link:
    """Messages to and from the node at ``address``.

    Until ``open`` gives it a channel it only collects. It ends once, with a reason: then its
    outbox is dropped, and sending raises ActorGone.
    """

    def __init__(self, address: str, limits: NodeLimits, counters: Counters) -> None:
        self.address = address
        self.incarnation: str | None = None
        self.end_reason: str | None = None
        self._limits, self._counters = limits, counters
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._outbox: BoundedQueue[_Parcel] = BoundedQueue(
            max_items=limits.outbox_messages, max_bytes=limits.outbox_bytes
        )
        self._writing: _Parcel | None = None
        self._writer: asyncio.Task[None] | None = None
        self._heard_at = self._loop.time()
        self._is_held_up = False

    @property
    def is_idle(self) -> bool:
        """Open, and nothing waits to be sent."""
        return self._channel is not None and self._writer is None and not self._outbox

    @property
    def heard_at(self) -> float:
        """When the peer was last heard, in the loop's time; now, while this side does not read."""
        return self._loop.time() if self._is_held_up else self._heard_at

    def open(self, channel: Channel, incarnation: str) -> None:
        """The peer has proved who it is: send what was collected. ``read`` must follow."""
        self._channel, self.incarnation = channel, incarnation
        self._heard_at = self._loop.time()
        if self._outbox:
            self._start_writer(None)

    async def send(self, header: bytes, regions: tuple[Region, ...], deadline_s: float) -> None:
        """What ``ActorRef.tell`` promises."""
        if not regions and self.is_idle:
            self._send_now(_Parcel(header, regions))
            return
        parcel = _Parcel(header, regions)
        if regions:
            parcel.sent = self._loop.create_future()
        if self.is_idle:
            self._send_now(parcel)
        else:
            await self._enqueue(parcel, deadline_s)
        if parcel.sent is not None:
            await parcel.sent

    def send_nowait(
        self, header: bytes, regions: tuple[Region, ...] = (), *, beyond_limit: bool = False
    ) -> None:
        """Send or collect without waiting. Raises OutOfMemory when the outbox has no room."""
        parcel = _Parcel(header, regions)
        if self.is_idle:
            self._send_now(parcel)
        elif not self._outbox.put_nowait(parcel, beyond_limit=beyond_limit):
            self._ensure_alive()
            free = self._limits.outbox_bytes - self._outbox.statistics().nbytes
            raise OutOfMemory(
                f"the outbox to {self.address}", needed_bytes=parcel.nbytes, free_bytes=free
            )

    async def _enqueue(self, parcel: _Parcel, deadline_s: float) -> None:
        waiting = self._outbox.offer(parcel)
        if waiting is None:
            return
        try:
            async with asyncio.timeout(deadline_s):
                await waiting
        except TimeoutError:
            raise TransferTimeout(
                f"the outbox to {self.address} had no room for {deadline_s:g} s"
            ) from None
        self._ensure_alive()

    def _send_now(self, parcel: _Parcel) -> None:
        assert self._channel is not None
        self._ensure_alive()
        try:
            rest = begin(
                self._channel.send(
                    parcel.header, *parcel.regions, deadline_s=self._limits.transfer_s
                )
            )
        except TransportError as error:
            self.end(_describe(error))
            raise ActorGone(f"{self.address} is gone: {self.end_reason}") from error
        if rest is None:
            self._sent(parcel)
        else:
            self._writing = parcel
            self._start_writer(rest)

    def _start_writer(self, rest: Started | None) -> None:
        self._writer = self._loop.create_task(self._write(rest), name=f"writer to {self.address}")

    async def _write(self, rest: Started | None) -> None:
        """Finish what ``_send_now`` began, then empty the outbox."""
        assert self._channel is not None
        try:
            if rest is not None and self._writing is not None:
                await rest
                self._sent(self._writing)
            while (parcel := self._outbox.get_nowait()) is not None:
                self._writing = parcel
                await self._channel.send(
                    parcel.header, *parcel.regions, deadline_s=self._limits.transfer_s
                )
                self._sent(parcel)
        except TransportError as error:
            self.end(_describe(error))
        except BaseException as error:
            self.end(f"sending failed: {error!r}")
            raise
        finally:
            self._writer = None

    def _sent(self, parcel: _Parcel) -> None:
        self._writing = None
        self._counters.sent += 1
        if parcel.sent is not None and not parcel.sent.done():
            parcel.sent.set_result(None)

    async def read(self, receive: Receive) -> None:
        """Hand on what arrives, until the link ends; then returns.

        While ``receive`` has no room, nothing more is read: the peer's outbox fills up.
        """
        assert self._channel is not None
        channel = self._channel
        try:
            while True:
                incoming = await channel.receive()
                attachments: list[bytearray] = []
                if incoming.sizes:
                    attachments = await incoming.take(deadline_s=self._limits.transfer_s)
                self._heard_at = self._loop.time()
                self._counters.received += 1
                waiting = receive(self, incoming.header, attachments)
                if waiting is not None:
                    await self._hold_up(waiting)
        except TransportError as error:
            self.end(_describe(error))

    async def _hold_up(self, waiting: asyncio.Future[bool]) -> None:
        self._is_held_up = True
        try:
            await waiting
        finally:
            self._is_held_up = False
            self._heard_at = self._loop.time()

    def end(self, reason: str) -> None:
        """Give the channel up now. Later calls change nothing; ``read`` returns soon."""
        if self.end_reason is not None:
            return
        self.end_reason = reason
        lost = self._outbox.close()
        if self._writing is not None:
            lost.insert(0, self._writing)
            self._writing = None
        self._counters.dropped += len(lost)
        for parcel in lost:
            if parcel.sent is not None and not parcel.sent.done():
                parcel.sent.set_exception(ActorGone(f"{self.address} is gone: {reason}"))
        if self._channel is not None:
            self._channel.abort()

    async def aclose(self, reason: str) -> None:
        """Send what was collected (within ``flush_s``), say goodbye, end."""
        if self.end_reason is None and self._channel is not None:
            if self._writer is not None:
                await asyncio.wait({self._writer}, timeout=self._limits.flush_s)
            if self._writer is None and self.end_reason is None:
                await self._channel.aclose()
        self.end(reason)
        if self._writer is not None:
            await asyncio.wait({self._writer})

    def statistics(self) -> QueueStatistics:
        return self._outbox.statistics()

    def __repr__(self) -> str:
        state = self.end_reason or ("connecting" if self._channel is None else "open")
        return f"<Link to {self.address}: {state}>"

    def _ensure_alive(self) -> None:
        if self.end_reason is not None:
            raise ActorGone(f"{self.address} is gone: {self.end_reason}")


def _describe(error: TransportError) -> str:
    return str(error) or type(error).__name__
