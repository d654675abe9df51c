"""The links to one peer, one after another: each is a new incarnation and ends the one before."""

from __future__ import annotations

from typing import Self

from dvrt.errors import Corrupted, PeerLost
from dvrt.streaming.greeting import DEFAULT_STALL_S, DEFAULT_WINDOW_BYTES, open_link
from dvrt.streaming.kit import Kit
from dvrt.streaming.link import Link
from dvrt.streaming.messages import Setup, ensure_incarnation
from dvrt.transport import Channel


class Lineage:
    """One for each peer, at both ends: the side that connects dials, the other one admits.

    The dialling side counts; an incarnation that is not newer than the latest is refused, so a
    connection that was slow to come, or a process that was replaced, cannot take a link over. A
    process that stands in for another one begins with an ``incarnation`` above that one's. All
    are in 0 to 2**32 - 1; ValueError for one that is not.
    """

    def __init__(
        self,
        kit: Kit,
        setup: Setup,
        *,
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        stall_s: float = DEFAULT_STALL_S,
        incarnation: int = 0,
    ) -> None:
        ensure_incarnation(incarnation)
        self.incarnation = incarnation
        self._kit, self._setup = kit, setup
        self._window_bytes, self._stall_s = window_bytes, stall_s
        self._dialled = incarnation
        self._link: Link | None = None

    def __repr__(self) -> str:
        return f"<Lineage incarnation {self.incarnation}, {self._link!r}>"

    async def dial(self, channel: Channel, *, deadline_s: float | None) -> Link:
        """A link on a channel that this side opened.

        Errors as ``admit``, and ValueError where there is no incarnation left; the channel is then
        still the caller's.
        """
        number = self._dialled = max(self._dialled, self.incarnation) + 1
        link = await self._open(channel, number, deadline_s)
        newest = max(link.peer.incarnation, self.incarnation)
        return await self._succeed(link, number, newest)

    async def admit(self, channel: Channel, *, deadline_s: float | None) -> Link:
        """A link on a channel that the peer opened.

        When it returns, the link before it is over and nothing of that touches memory any more.
        Raises as ``open_link``, WireError where the peer's incarnation is out of bounds, and
        Corrupted where it is not a new one; the link before then lives on.
        """
        link = await self._open(channel, self.incarnation, deadline_s)
        return await self._succeed(link, link.peer.incarnation, self.incarnation)

    async def _open(self, channel: Channel, incarnation: int, deadline_s: float | None) -> Link:
        return await open_link(
            channel,
            self._kit,
            self._setup,
            deadline_s=deadline_s,
            window_bytes=self._window_bytes,
            stall_s=self._stall_s,
            incarnation=incarnation,
        )

    async def _succeed(self, link: Link, number: int, newest: int) -> Link:
        if number <= newest:
            await link.aclose()
            raise Corrupted("incarnation", expected=f"one above {newest}", got=number)
        former, self._link, self.incarnation = self._link, link, number
        if former is not None:
            former.abort(PeerLost(f"incarnation {number} took the link's place"))
            await former.wait_over()
        return link

    async def aclose(self, *, deadline_s: float | None = 5.0) -> None:
        """Close the latest link."""
        if self._link is not None:
            await self._link.aclose(deadline_s=deadline_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
