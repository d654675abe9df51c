"""What every channel of ours has in common: conflicts, breakage, closing and counting.

A subclass moves bytes (``_send``, ``_next``, ``_fill``) and lets go (``_finish``, ``_drop``); it
never sees two senders, a closed channel or regions that do not fit.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from dvrt.buffers import MemoryKind, Region
from dvrt.errors import ChannelBusy, ChannelClosed, TransferTimeout
from dvrt.transport.base import (
    MAX_HEADER_BYTES,
    MAX_REGION_BYTES,
    MAX_REGIONS,
    Borrowed,
    Channel,
    ChannelStatistics,
    Incoming,
    OneAtATime,
    ensure_usable,
)
from dvrt.transport.waiting import Waiter, until

Taken = TypeVar("Taken")


class GuardedIncoming(Incoming):
    """A message of a GuardedChannel."""

    def __init__(self, channel: GuardedChannel, header: bytes, sizes: tuple[int, ...]) -> None:
        self._channel = channel
        self.header = header
        self.sizes = sizes

    async def into(self, *regions: Region, deadline_s: float | None = None) -> None:
        await self._channel.fill(self, regions, deadline_s)

    async def take(self, *, deadline_s: float | None = None) -> list[bytearray]:
        here = self._channel.take_here(self)
        return await super().take(deadline_s=deadline_s) if here is None else here

    async def borrow(self, *, deadline_s: float | None = None) -> Borrowed:
        return await self._channel.borrow(self, deadline_s)


class GuardedChannel(Channel):
    """A channel whose subclass only moves bytes."""

    moves_cuda: bool = False
    """Whether the subclass takes regions of CUDA memory."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._sending, self._receiving = OneAtATime("sending"), OneAtATime("receiving")
        self._send_waiter, self._receive_waiter = Waiter("a send"), Waiter("a receive")
        self._incoming: GuardedIncoming | None = None
        self._closed = False
        self._broken: BaseException | None = None
        self._sent_messages = self._sent_bytes = 0
        self._received_messages = self._received_bytes = 0

    @abstractmethod
    async def _send(
        self, header: bytes, regions: tuple[Region, ...], sizes: list[int], until: float | None
    ) -> None:
        """Move one message out; its regions have these sizes."""

    @abstractmethod
    async def _next(self, until: float | None) -> tuple[bytes, tuple[int, ...]]:
        """Header and sizes of the next message; a cancelled or late call must lose nothing."""

    @abstractmethod
    async def _fill(self, regions: tuple[Region, ...], until: float | None) -> None:
        """Move the regions of the message that ``_next`` returned last."""

    @abstractmethod
    async def _finish(self) -> None:
        """Flush and say goodbye; ``_drop`` follows."""

    @abstractmethod
    def _drop(self) -> None:
        """Release everything now and stop touching memory. Called once."""

    async def send(self, header: bytes, *regions: Region, deadline_s: float | None = None) -> None:
        with self._sending:
            ensure_usable(closed=self._closed, broken=self._broken)
            sizes = [region.nbytes for region in regions]
            check_message(header, regions, sizes, moves_cuda=self.moves_cuda)
            try:
                await self._send(header, regions, sizes, until(deadline_s))
            except BaseException as error:
                self._break(error)
                raise
            self._sent_messages += 1
            self._sent_bytes += sum(sizes) + len(header)

    async def receive(self, *, deadline_s: float | None = None) -> Incoming:
        with self._receiving:
            ensure_usable(closed=self._closed, broken=self._broken)
            if self._incoming is not None:
                raise ChannelBusy("the regions of the last message were not received")
            try:
                header, sizes = await self._next(until(deadline_s))
            except (asyncio.CancelledError, TransferTimeout):
                raise
            except BaseException as error:
                self._break(error)
                raise
            return self._begin(header, sizes)

    def _begin(self, header: bytes, sizes: tuple[int, ...]) -> GuardedIncoming:
        incoming = GuardedIncoming(self, header, sizes)
        if sizes:
            self._incoming = incoming
        self._received_messages += 1
        self._received_bytes += len(header)
        return incoming

    async def fill(
        self, incoming: GuardedIncoming, regions: tuple[Region, ...], deadline_s: float | None
    ) -> None:
        """What ``incoming.into`` does."""
        check_targets(incoming.sizes, regions, moves_cuda=self.moves_cuda)
        await self._receive(incoming, partial(self._fill_any, regions), deadline_s)

    async def _fill_any(self, regions: tuple[Region, ...], until: float | None) -> None:
        if regions:
            await self._fill(regions, until)

    def take_here(self, incoming: GuardedIncoming) -> list[bytearray] | None:
        """What ``incoming.take`` does, if that needs no waiting; else None, and nothing is done."""
        if self._incoming is not incoming:
            return None
        with self._receiving:
            ensure_usable(closed=self._closed, broken=self._broken)
            parts = self._take_here(incoming.sizes)
            if parts is not None:
                self._incoming = None
                self._received_bytes += sum(incoming.sizes)
            return parts

    def _take_here(self, sizes: tuple[int, ...]) -> list[bytearray] | None:
        """Like ``_fill``, into new memory, if all bytes have come; else None."""
        return None

    async def borrow(self, incoming: GuardedIncoming, deadline_s: float | None) -> Borrowed:
        """What ``incoming.borrow`` does."""
        return await self._receive(incoming, partial(self._borrow, incoming.sizes), deadline_s)

    async def _borrow(self, sizes: tuple[int, ...], until: float | None) -> Borrowed:
        """Like ``_fill``, into memory of the transport's choice; here into new memory."""
        parts = [bytearray(size) for size in sizes]
        await self._fill_any(tuple([Region.of(part) for part in parts]), until)
        return Borrowed(lambda: [memoryview(part) for part in parts])

    async def _receive(
        self,
        incoming: GuardedIncoming,
        move: Callable[[float | None], Awaitable[Taken]],
        deadline_s: float | None,
    ) -> Taken:
        """Have the regions of ``incoming`` received by ``move``, or the channel breaks.

        A message without regions asks nothing of the channel, which may be at the next one.
        """
        if not incoming.sizes:
            return await move(until(deadline_s))
        with self._receiving:
            ensure_usable(closed=self._closed, broken=self._broken)
            if self._incoming is not incoming:
                raise ValueError("the regions of this message were already received")
            try:
                taken = await move(until(deadline_s))
            except BaseException as error:
                self._break(error)
                raise
            self._incoming = None
            self._received_bytes += sum(incoming.sizes)
            return taken

    def _ensure_usable(self) -> None:
        """For a subclass that was woken: raise when the channel ended in the meantime."""
        ensure_usable(closed=self._closed, broken=self._broken)

    def _break(self, error: BaseException) -> None:
        """The channel is of no more use; whoever waits on it learns why."""
        if self._closed or self._broken is not None:
            return
        self._broken = error
        self._drop()
        self._send_waiter.wake()
        self._receive_waiter.wake()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._send_waiter.wake()
        self._receive_waiter.wake()
        if self._broken is not None:
            return
        try:
            await self._finish()
        finally:
            if self._broken is None:
                self._broken = ChannelClosed("this side closed the channel")
                self._drop()

    def abort(self) -> None:
        was_open = self._broken is None
        self._closed = True
        if was_open:
            self._broken = ChannelClosed("this side aborted the channel")
            self._drop()
        self._send_waiter.wake()
        self._receive_waiter.wake()

    async def quiet(self) -> None:
        """Nothing to wait for: only this loop's callbacks touch memory, and they are gone."""

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            sent_messages=self._sent_messages,
            sent_bytes=self._sent_bytes,
            received_messages=self._received_messages,
            received_bytes=self._received_bytes,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "broken" if self._broken is not None else "open"
        return f"<{type(self).__name__} to {self.peer} {state}>"


def check_message(
    header: bytes, regions: tuple[Region, ...], sizes: list[int], *, moves_cuda: bool = False
) -> None:
    """Raise ValueError for a message beyond the limits, TypeError for unfit memory."""
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(header)} bytes; limit {MAX_HEADER_BYTES}")
    if len(regions) > MAX_REGIONS:
        raise ValueError(f"{len(regions)} regions in one message; limit {MAX_REGIONS}")
    if sum(sizes) > MAX_REGION_BYTES:
        raise ValueError(f"regions of {sum(sizes)} bytes; limit {MAX_REGION_BYTES}")
    if not moves_cuda and MemoryKind.CUDA in [region.kind for region in regions]:
        raise TypeError("this transport moves host memory; copy the region to staging first")


def check_targets(
    sizes: tuple[int, ...], regions: tuple[Region, ...], *, moves_cuda: bool = False
) -> None:
    """Raise ValueError unless the regions have these sizes, TypeError if one cannot be written."""
    given = tuple([region.nbytes for region in regions])
    if given != sizes:
        raise ValueError(f"regions of {_brief(given)} bytes for a message of {_brief(sizes)}")
    for region in regions:
        if region.kind is MemoryKind.CUDA and not moves_cuda:
            raise TypeError("this transport moves host memory; receive into staging first")
        if region.nbytes and isinstance(region.owner, memoryview) and region.owner.readonly:
            raise TypeError("a region of read-only memory cannot be received into")


def _brief(sizes: tuple[int, ...]) -> str:
    shown = ", ".join(str(size) for size in sizes[:8])
    return f"({shown}{', ...' if len(sizes) > 8 else ''})"
