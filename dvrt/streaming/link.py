"""A link: one channel that many streams share, within the peer's window, in both directions.

Two tasks belong to a link: one sends what streams submit, one receives and routes. A stream's
caller may be cancelled at any time; frames are never cut by that. When the channel breaks, the
link waits until it is quiet, gives all staging back and fails every stream.
"""

from __future__ import annotations

import asyncio
from typing import Self

from dvrt.buffers import Region
from dvrt.errors import ChannelClosed, DvrtError, PeerLost, ProtocolError, TransportError
from dvrt.streaming.contiguous import cut, to_its_end
from dvrt.streaming.headers import unpack
from dvrt.streaming.incoming import Arrival, InStream
from dvrt.streaming.kit import Kit
from dvrt.streaming.messages import (
    Commit,
    Credit,
    Grant,
    Hello,
    Offer,
    Over,
    Parcel,
    Said,
    Stored,
    Together,
    joined,
    over,
)
from dvrt.streaming.outbox import Outbox
from dvrt.streaming.outgoing import Outgoing, OutStream
from dvrt.streaming.window import WindowStatistics
from dvrt.transport import Channel, Incoming

MAX_OFFERS = 1024
MAX_SAID = 1 << 16
"""Small messages that may wait for the peer to read."""
GENERATION_BITS = 32
"""Generations of a later incarnation are above these: no parcel can be taken for another link's."""

Key = tuple[str, int]


class Link:
    """Made by ``open_link``. ``stall_s`` bounds every single send and receive of a parcel."""

    def __init__(
        self, channel: Channel, kit: Kit, *, mine: Hello, theirs: Hello, stall_s: float
    ) -> None:
        self.kit = kit
        self.peer = theirs
        self._channel = channel
        self._stall_s = stall_s
        self._outbox = Outbox(theirs.window_bytes)
        self._own_window_bytes = mine.window_bytes
        self._out: dict[Key, OutStream] = {}
        self._in: dict[Key, InStream] = {}
        self._offers: dict[Key, Offer] = {}
        self._offered_more = asyncio.Event()
        self._receiving: InStream | None = None
        self.incarnation = max(mine.incarnation, theirs.incarnation)
        self._generation = self.incarnation << GENERATION_BITS
        self._is_closing = False
        self._error: BaseException | None = None
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"link {channel.peer}")

    def __repr__(self) -> str:
        state = "broken" if self._error else "closing" if self._is_closing else "open"
        streams = f"{len(self._out)} out, {len(self._in)} in"
        return f"<Link to {self._channel.peer} {state}, {streams}, {self._outbox!r}>"

    def statistics(self) -> WindowStatistics:
        return self._outbox.window.statistics()

    async def offer(self, stream: OutStream, *, deadline_s: float | None) -> None:
        """Begin a stream; returns once the peer accepts it. Raises PeerLost, TransferTimeout."""
        self.ensure_open()
        if stream.key in self._out:
            raise ProtocolError(f"stream {stream.key} is already on its way")
        self._out[stream.key] = stream
        self.say(stream.offer)
        await stream.granted(deadline_s=deadline_s)

    def accept(self, stream: InStream) -> None:
        """Expect a stream, offered already or not. One at a time of each name and epoch."""
        self.ensure_open()
        if stream.key in self._in:
            raise ProtocolError(f"stream {stream.key} is already expected")
        self._generation += 1
        stream.generation = self._generation
        self._in[stream.key] = stream
        if offer := self._offers.pop(stream.key, None):
            self._grant(stream, offer)

    async def next_offer(self) -> Offer | None:
        """The first offer that nobody expects yet; ``accept`` takes it. None when the link ends."""
        while not self._offers and self._error is None:
            self._offered_more.clear()
            await self._offered_more.wait()
        return next(iter(self._offers.values()), None) if self._error is None else None

    def _grant(self, stream: InStream, offer: Offer) -> None:
        if not stream.begin(offer):
            return
        name, epoch = stream.key
        self.say(
            Grant(stream=name, epoch=epoch, generation=stream.generation, proved=stream.proved)
        )

    def forget(self, stream: OutStream | InStream) -> None:
        """No more of this stream; what still comes of it is late."""
        side: dict[Key, OutStream] | dict[Key, InStream] = (
            self._out if isinstance(stream, OutStream) else self._in
        )
        if side.get(stream.key) is stream:
            del side[stream.key]

    def say(self, message: Said) -> None:
        """Send a small message soon, ahead of parcels; dropped when the link is over."""
        if self._error is None:
            self._outbox.say(message)

    def submit(self, parcel: Outgoing) -> None:
        """Send a parcel in its turn, within the peer's window; it settles when it is over."""
        self.ensure_open()
        self._outbox.submit(parcel)

    def withdraw(self, stream: OutStream) -> None:
        """Drop what was submitted for a stream and is not being sent."""
        self._outbox.withdraw(stream)

    def sending_of(self, stream: OutStream) -> asyncio.Future[None] | None:
        """Done when the parcel of this stream that is on the wire is over; None without one."""
        sending = self._outbox.sending
        return sending.sent if sending is not None and sending.stream is stream else None

    def credit(self, sequence: int) -> None:
        """The parcel with this number needs no more of our memory."""
        self.say(Credit(sequence=sequence))

    def ensure_open(self) -> None:
        if self._error is not None:
            raise PeerLost(f"link to {self._channel.peer} is over") from self._error
        if self._is_closing:
            raise ChannelClosed(f"link to {self._channel.peer} is closing")

    def abort(self, error: TransportError | None = None) -> None:
        """End the link now; never waits. ``wait_over`` returns when nothing touches memory.

        ``error`` is what its streams fail with; ChannelClosed without.
        """
        self._verdict = self._verdict or error
        self._is_aborted = True
        if self._has_begun:  # a task that is cancelled before its first step never cleans up
            self._task.cancel()

    async def wait_over(self) -> None:
        await self._over.wait()

    async def aclose(self, *, deadline_s: float | None = 5.0) -> None:
        """Send what was submitted, say goodbye, end. Late, the link is aborted."""
        self._is_closing = True
        try:
            async with asyncio.timeout(deadline_s):
                await self._outbox.drained()
        except TimeoutError:
            pass
        finally:
            self.abort()
            await self._over.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    _verdict: TransportError | None = None
    _has_begun = _is_aborted = False

    async def _run(self) -> None:
        error: BaseException | None = None
        is_polite = False
        self._has_begun = True
        try:
            if self._is_aborted:
                raise asyncio.CancelledError
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_all())
                group.create_task(self._receive_all())
        except asyncio.CancelledError:
            is_polite = self._is_closing and not self._outbox.has_parcels
        except BaseExceptionGroup as group_error:
            error = group_error.exceptions[0]
            if not isinstance(error, DvrtError):
                self._report(error)
        error = error or self._verdict or ChannelClosed("this side ended the link")
        await asyncio.shield(asyncio.create_task(self._end(error, is_polite=is_polite)))

    async def _end(self, error: BaseException, *, is_polite: bool) -> None:
        self._error = error
        try:
            if is_polite:
                await self._goodbye()
        finally:
            self._channel.abort()
            await self._channel.quiet()
            self._settle(error)
            self.kit.take_back(self._own_window_bytes)
            self._offered_more.set()
            self._over.set()

    async def _goodbye(self) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self._channel.aclose()
        except (TransportError, TimeoutError):
            pass

    def _settle(self, error: BaseException) -> None:
        """Nothing touches memory any more: give all of it back and fail who waits."""
        lost = error if isinstance(error, TransportError) else PeerLost(f"the link ended: {error}")
        self._received()
        self._outbox.settle(lost)
        for out in list(self._out.values()):
            out.fail(lost)
        for into in list(self._in.values()):
            into.fail(lost)
        self._out.clear()
        self._in.clear()

    def _received(self) -> None:
        """Nothing is written into a stream's own memory: that has come, or the channel is quiet."""
        stream, self._receiving = self._receiving, None
        if stream is not None:
            stream.received()

    def _report(self, error: BaseException) -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{self!r} failed", "exception": error}
        )

    async def _send_all(self) -> None:
        while True:
            said, regions = await self._outbox.take()
            await self._channel.send(joined(said), *regions, deadline_s=self._stall_s)
            parcel = self._outbox.sent()
            if parcel is not None:
                self.kit.counters.parcels_sent += 1
                self.kit.counters.bytes_sent += parcel.nbytes
                parcel.settle(None)

    async def _receive_all(self) -> None:
        while True:
            incoming = await self._channel.receive()
            message = unpack(incoming.header)
            *said, last = message.messages if isinstance(message, Together) else (message,)
            for one in said:
                self._handle(one)
            if isinstance(last, Parcel):
                await self._take(last, incoming)
            elif incoming.sizes:
                raise ProtocolError(f"a {type(last).__name__} with regions")
            else:
                self._handle(last)
            if self._outbox.n_said > MAX_SAID:
                raise ProtocolError(f"{MAX_SAID} answers wait for a peer that does not read them")

    def _handle(self, message: object) -> None:
        if isinstance(message, Credit):
            self._outbox.acknowledge(message.sequence)
        elif isinstance(message, Offer):
            self._offered(message)
        elif isinstance(message, Grant | Stored):
            out = self._out.get((message.stream, message.epoch))
            if out is not None:
                out.told(message)
            elif isinstance(message, Grant):
                self._withdraw(message)
        elif isinstance(message, Commit):
            into = self._in.get((message.stream, message.epoch))
            if into is not None and into.generation == message.generation:
                into.committed(message)
        elif isinstance(message, Over):
            self._ended(message)
        else:
            raise ProtocolError(f"a {type(message).__name__} on a link")

    def _offered(self, offer: Offer) -> None:
        key = (offer.stream, offer.epoch)
        if key in self._in:
            self._grant(self._in[key], offer)
        elif len(self._offers) < MAX_OFFERS:
            self._offers[key] = offer
            self._offered_more.set()
        else:
            reason = f"{MAX_OFFERS} streams are offered that nobody expects"
            self.say(over(key, 0, is_from_sender=False, reason=reason))

    def _withdraw(self, grant: Grant) -> None:
        """An offer that was given up before it was granted: nobody will send what is expected."""
        key, reason = (grant.stream, grant.epoch), "the offer was withdrawn"
        self.say(over(key, grant.generation, is_from_sender=True, reason=reason))

    def _ended(self, message: Over) -> None:
        key = (message.stream, message.epoch)
        stream: InStream | OutStream | None
        if message.is_from_sender:
            self._offers.pop(key, None)
            stream = self._in.get(key)
        else:
            stream = self._out.get(key)
        if stream is not None and stream.generation == message.generation:
            stream.told_over(message)

    async def _take(self, parcel: Parcel, incoming: Incoming) -> None:
        """Receive a parcel into its place, into staging, or, when it is late, into nothing."""
        nbytes = sum(incoming.sizes)
        if nbytes > max(self._own_window_bytes, self.kit.max_parcel_bytes):
            raise ProtocolError(f"a parcel of {nbytes} bytes")
        stream = self._in.get((parcel.stream, parcel.epoch))
        is_late = stream is None or stream.generation != parcel.generation
        if stream is not None and not is_late and (direct := stream.direct(parcel, incoming.sizes)):
            self._receiving = stream
            stream.receiving()
            await incoming.into(*direct, deadline_s=self._stall_s)
            self._received()
            arrival = Arrival(parcel=parcel, nbytes=nbytes, staging=None, regions=direct)
            stream.arrived(arrival)
            return
        staging = await self.kit.landing.lease(nbytes)  # what fills it is ours, and no stall
        regions: list[Region] = cut(staging.region, incoming.sizes)
        try:
            await incoming.into(*regions, deadline_s=self._stall_s)
        except BaseException:
            staging.quarantine()
            self._channel.abort()
            try:
                await to_its_end(self._channel.quiet())
            finally:
                staging.settle()
            raise
        if stream is None or is_late or stream.is_over:
            staging.release()
            self.kit.counters.late_parcels += 1
            self.credit(parcel.sequence)
            return
        stream.arrived(Arrival(parcel=parcel, nbytes=nbytes, staging=staging, regions=regions))
