"""The transport contract: ordered, reliable channels that move a header and regions of memory.

Knows nothing of what the bytes mean. Each transport subclasses Channel, Listener and Transport;
``conformance`` checks that it keeps every promise written here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from dvrt.buffers import Region
from dvrt.errors import ChannelBusy, ChannelClosed, PeerLost

MAX_HEADER_BYTES = 16 << 20
MAX_REGIONS = 1 << 16
MAX_REGION_BYTES = 1 << 40
"""The largest sum of region sizes that one message may claim."""


class Limits(NamedTuple):
    """What a receiver accepts; narrower until the peer has proved who it is.

    Over a network, a channel whose peer's host acknowledges nothing of what was sent for
    ``unacknowledged_s`` ends, also when the peer does not read for so long; 0 leaves that to the
    system, which may wait for a quarter of an hour.
    """

    max_header_bytes: int = MAX_HEADER_BYTES
    max_regions: int = MAX_REGIONS
    max_region_bytes: int = MAX_REGION_BYTES
    unacknowledged_s: float = 0.0


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStatistics:
    """Counters of one channel since it was opened; bytes count regions and headers."""

    sent_messages: int = 0
    sent_bytes: int = 0
    received_messages: int = 0
    received_bytes: int = 0


class Borrowed:
    """Received regions in memory that belongs to the transport; give it back with ``release``.

    ``views`` are read-only where the memory is shared with the peer, and are not to be used after
    ``release``. What is kept keeps the peer from sending more, once the transport's window is full.
    """

    def __init__(
        self,
        make_views: Callable[[], Sequence[memoryview]],
        on_release: Callable[[], None] | None = None,
    ) -> None:
        self._make_views: Callable[[], Sequence[memoryview]] | None = make_views
        self._views: Sequence[memoryview] | None = None
        self._on_release = on_release

    @property
    def views(self) -> Sequence[memoryview]:
        """One view a region, in order. Raises ValueError after ``release``."""
        if self._make_views is None:
            raise ValueError("these regions were released")
        if self._views is None:
            self._views = self._make_views()
        return self._views

    def release(self) -> None:
        """Twice is harmless."""
        self._make_views = self._views = None
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class Incoming(ABC):
    """A message whose header has arrived and whose regions are still to be received."""

    header: bytes
    sizes: tuple[int, ...]

    @abstractmethod
    async def into(self, *regions: Region, deadline_s: float | None = None) -> None:
        """Receive the regions straight into this memory; sizes must match exactly.

        Must be called before the next ``receive`` (not needed when ``sizes`` is empty). If it
        raises, CancelledError included, the channel is broken and the memory may still be written
        to until ``channel.quiet()`` returns. Regions that do not fit (ValueError) or that cannot
        be written (TypeError) are refused before a byte moves and break nothing.
        """

    async def take(self, *, deadline_s: float | None = None) -> list[bytearray]:
        """Receive the regions into new memory."""
        buffers = [bytearray(size) for size in self.sizes]
        await self.into(*(Region.of(buffer) for buffer in buffers), deadline_s=deadline_s)
        return buffers

    async def borrow(self, *, deadline_s: float | None = None) -> Borrowed:
        """Receive the regions where the transport has them, without a copy where it can.

        Stands in for ``into``, with its errors.
        """
        parts = await self.take(deadline_s=deadline_s)
        return Borrowed(lambda: [memoryview(part) for part in parts])


class Channel(ABC):
    """An ordered, reliable path to one peer. One sender and one receiver at a time.

    A second concurrent sender (or receiver) gets ChannelBusy. A send or receive that raises,
    CancelledError included, leaves the channel broken: later calls raise PeerLost. Regions of a
    broken transfer may still be touched until ``quiet()`` returns. Two things break nothing:
    being refused at once (ChannelBusy, ValueError, TypeError), and a ``receive`` that is cancelled
    or times out before any byte of its message arrived. A deadline counts seconds from the call.
    """

    peer: str = "?"
    limits: Limits = DEFAULT_LIMITS

    @abstractmethod
    async def send(self, header: bytes, *regions: Region, deadline_s: float | None = None) -> None:
        """Send a header and any number of regions as one message.

        Returns when the regions may be reused by the caller; that the peer has them is not
        implied. Raises ChannelClosed, ChannelBusy, PeerLost, TransferTimeout; ValueError beyond
        MAX_HEADER_BYTES or MAX_REGIONS.
        """

    @abstractmethod
    async def receive(self, *, deadline_s: float | None = None) -> Incoming:
        """The next message's header. Raises as ``send`` does, and Corrupted for a bad frame.

        Cancelling a receive before any byte of the message arrived loses nothing and breaks
        nothing; the next receive gets the message.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Flush, say goodbye, release. The peer's receive raises PeerLost. Twice is harmless."""

    @abstractmethod
    def abort(self) -> None:
        """Close now; never waits; safe in ``finally``. Pending calls raise ChannelClosed."""

    @abstractmethod
    async def quiet(self) -> None:
        """Return when no transfer of this channel can touch this side's memory any more."""

    @abstractmethod
    def statistics(self) -> ChannelStatistics: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


ChannelHandler = Callable[[Channel], Awaitable[None]]


class Listener(ABC):
    """Accepts channels at ``address`` and hands each to the handler in a task of its own."""

    address: str

    @abstractmethod
    async def aclose(self) -> None:
        """Stop accepting; accepted channels live on and belong to their handlers."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class Transport(ABC):
    """A way to open channels; addresses are ``scheme://rest``."""

    scheme: ClassVar[str]

    @abstractmethod
    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        """Open a channel. Raises ConnectFailed."""

    @abstractmethod
    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        """Accept channels; port 0 (or an empty name) picks a free one. Raises ConnectFailed."""


class OneAtATime:
    """Turns two concurrent uses of one direction into ChannelBusy; refuses a dead channel."""

    __slots__ = ("_busy", "_verb")

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise ChannelBusy(f"another task is {self._verb} on this channel")
        self._busy = True

    def __exit__(self, *exc: object) -> None:
        self._busy = False


def ensure_usable(*, closed: bool, broken: BaseException | None) -> None:
    """Raise what a call on a closed or broken channel must raise."""
    if closed:
        raise ChannelClosed("this side closed the channel")
    if broken is not None:
        raise PeerLost(f"the channel broke: {broken or type(broken).__name__}") from broken
