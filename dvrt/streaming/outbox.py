"""What waits to leave on a link: small messages, and parcels as the peer's window has room."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from dvrt.errors import ChannelClosed
from dvrt.streaming.messages import MAX_TOGETHER, Said
from dvrt.streaming.window import Window

if TYPE_CHECKING:
    from dvrt.buffers import Region
    from dvrt.streaming.outgoing import Outgoing, OutStream


class Outbox:
    """``sending`` is the parcel that was taken last, until ``sent`` is called."""

    def __init__(self, window_bytes: int) -> None:
        self.window = Window(window_bytes)
        self.sending: Outgoing | None = None
        self._said: deque[Said] = deque()
        self._parcels: deque[Outgoing] = deque()
        self._work = asyncio.Event()
        self._is_drained: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"{len(self._parcels)} parcels wait, {self.window!r}"

    @property
    def n_said(self) -> int:
        """Small messages that wait."""
        return len(self._said)

    def say(self, message: Said) -> None:
        self._said.append(message)
        self._work.set()

    def submit(self, parcel: Outgoing) -> None:
        self._parcels.append(parcel)
        self._work.set()

    def acknowledge(self, sequence: int) -> None:
        """The peer is done with a parcel. Raises ProtocolError for one that is not under way."""
        self.window.acknowledge(sequence)
        self._work.set()

    @property
    def has_parcels(self) -> bool:
        return bool(self._parcels) or self.sending is not None

    async def take(self) -> tuple[list[Said], tuple[Region, ...]]:
        """The next message, once there is one: what was said and a parcel, or either of them.

        They leave as one since it is the waking of the peer that costs.
        """
        while True:
            parcel = self._parcels[0] if self._parcels else None
            if parcel is not None and not self.window.fits(parcel.cost_bytes):
                parcel = None
            if parcel is not None or self._said:
                break
            if self._is_drained is not None and not self._parcels:
                self._is_drained.set()
            self._work.clear()
            await self._work.wait()
        said = [self._said.popleft() for _ in range(min(len(self._said), MAX_TOGETHER))]
        if parcel is None:
            return said, ()
        self.sending = self._parcels.popleft()
        said.append(parcel.header(self.window.send(parcel.cost_bytes)))
        return said, tuple(parcel.regions)

    def sent(self) -> Outgoing | None:
        """What was taken last has left; the parcel in it."""
        parcel, self.sending = self.sending, None
        return parcel

    def withdraw(self, stream: OutStream) -> None:
        """Drop what was submitted for a stream and is not being sent."""
        dropped = [parcel for parcel in self._parcels if parcel.stream is stream]
        self._parcels = deque(parcel for parcel in self._parcels if parcel.stream is not stream)
        for parcel in dropped:
            parcel.settle(ChannelClosed(f"stream {stream.key} was cancelled"))

    async def drained(self) -> None:
        """Return when nothing waits, or after ``settle``."""
        while self._said or self.has_parcels:
            self._is_drained = asyncio.Event()
            self._work.set()
            await self._is_drained.wait()

    def settle(self, error: Exception) -> None:
        """Nothing leaves any more, and nothing reads the parcels' memory."""
        waiting = [*([self.sending] if self.sending else []), *self._parcels]
        self.sending = None
        self._parcels.clear()
        self._said.clear()
        for parcel in waiting:
            parcel.settle(error)
        if self._is_drained is not None:
            self._is_drained.set()
