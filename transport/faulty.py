"""``FaultyTransport``: any transport, made to fail on purpose and on schedule.

Waits with ``asyncio.sleep`` and futures alone, so that virtual time works. Corrupts copies, never
the caller's memory; host memory only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from dvrt.buffers import Region
from dvrt.errors import PeerLost
from dvrt.transport.base import Channel, ChannelHandler, Incoming, Limits, Listener, Transport
from dvrt.transport.faults import Direction, Fault, FaultKind, FaultPlan, ScriptedFaults
from dvrt.transport.guarded import GuardedChannel
from dvrt.transport.waiting import Waiter


class FaultyTransport(Transport):
    """Wraps ``inner``; every channel that is connected or accepted meets the faults of ``plan``.

    A plan is a list of faults or a FaultPlan, such as RandomFaults. A CUT at the sender moves
    nothing of its message, as ``inner`` sends messages whole, and its peer sees PeerLost where the
    message would begin; one at the receiver leaves the first ``byte`` bytes in its memory.
    """

    scheme: ClassVar[str] = "faulty"

    def __init__(self, inner: Transport, plan: FaultPlan | Sequence[Fault] = ()) -> None:
        self._inner = inner
        self._plan = ScriptedFaults(plan) if isinstance(plan, Sequence) else plan
        self._wrapped = 0

    def wrap(self, channel: Channel) -> FaultyChannel:
        """This channel with faults; it gets the next channel number."""
        number = self._wrapped
        self._wrapped += 1
        return FaultyChannel(channel, self._plan, number)

    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        return self.wrap(await self._inner.connect(address, deadline_s=deadline_s))

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        async def accepted(channel: Channel) -> None:
            await handler(self.wrap(channel))

        return await self._inner.listen(address, accepted)


class FaultyChannel(GuardedChannel):
    """One end of a channel, between its user and the real one."""

    def __init__(self, inner: Channel, plan: FaultPlan, number: int) -> None:
        self._inner = inner
        super().__init__(inner.peer)
        self._plan, self._number = plan, number
        self._send_index = self._receive_index = 0
        self._is_half_open = False
        self._held: Incoming | None = None
        self._held_until = 0.0
        self._fault: Fault | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def limits(self) -> Limits:
        return self._inner.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._inner.limits = limits

    async def _send(
        self, header: bytes, regions: tuple[Region, ...], sizes: list[int], until: float | None
    ) -> None:
        fault = self._plan.fault(self._number, Direction.SEND, self._send_index)
        self._send_index += 1
        if fault is not None:
            if fault.kind is FaultKind.HALF_OPEN:
                self._is_half_open = True
            if fault.kind is FaultKind.DROP:
                return
            if fault.kind in (FaultKind.DELAY, FaultKind.STALL):
                await self._pause(self._send_waiter, self._loop.time() + fault.seconds, until)
            if fault.kind is FaultKind.CUT:
                raise PeerLost("the connection was cut on purpose")
            if fault.kind is FaultKind.FLIP:
                header, regions = _flipped(header, regions, fault)
        if not self._is_half_open:
            await self._inner.send(header, *regions, deadline_s=self._remaining_s(until))

    async def _next(self, until: float | None) -> tuple[bytes, tuple[int, ...]]:
        while True:
            if self._held is None:
                await self._hold_next(until)
            await self._pause(self._receive_waiter, self._held_until, until)
            held, fault = self._held, self._fault
            assert held is not None
            if fault is not None and fault.kind is FaultKind.DROP:
                await self._discard(held, until)
                continue
            header = self._harmed_header(held)
            if not held.sizes:
                self._held = None
            return header, held.sizes

    async def _hold_next(self, until: float | None) -> None:
        """Take the next message from the real channel and keep it, whatever becomes of our task."""
        incoming = await self._inner.receive(deadline_s=self._remaining_s(until))
        fault = self._plan.fault(self._number, Direction.RECEIVE, self._receive_index)
        self._receive_index += 1
        self._held, self._fault, self._held_until = incoming, fault, 0.0
        if fault is not None and fault.kind in (FaultKind.DELAY, FaultKind.STALL):
            self._held_until = self._loop.time() + fault.seconds
        if fault is not None and fault.kind is FaultKind.HALF_OPEN:
            self._is_half_open = True
        if self._is_half_open:
            self._held_until = float("inf")

    async def _discard(self, held: Incoming, until: float | None) -> None:
        try:
            await held.take(deadline_s=self._remaining_s(until))
        except BaseException as error:
            self._break(error)
            raise
        self._held = None

    def _harmed_header(self, held: Incoming) -> bytes:
        fault = self._fault
        if fault is None or _place(fault, held) >= len(held.header):
            return held.header
        if fault.kind is FaultKind.CUT:
            raise PeerLost("the connection was cut on purpose")
        if fault.kind is not FaultKind.FLIP:
            return held.header
        copy = bytearray(held.header)
        _flip([memoryview(copy)], _place(fault, held), fault.bit)
        return bytes(copy)

    async def _fill(self, regions: tuple[Region, ...], until: float | None) -> None:
        held, fault = self._held, self._fault
        assert held is not None
        deadline_s = self._remaining_s(until)
        place = -1 if fault is None else _place(fault, held) - len(held.header)
        if fault is not None and fault.kind is FaultKind.CUT and place >= 0:
            _copy_first(place, await held.take(deadline_s=deadline_s), regions)
            raise PeerLost("the connection was cut on purpose")
        await held.into(*regions, deadline_s=deadline_s)
        if fault is not None and fault.kind is FaultKind.FLIP and place >= 0:
            _flip([region.view() for region in regions], place, fault.bit)
        self._held = None

    async def _pause(self, waiter: Waiter, resume_at: float, until: float | None) -> None:
        """Sleep until ``resume_at``, or raise TransferTimeout if ``until`` comes first."""
        while self._loop.time() < resume_at:
            alarm = None
            if resume_at < float("inf"):
                alarm = self._loop.call_at(resume_at, waiter.wake)
            try:
                await waiter.wait(until if until is not None and until < resume_at else None)
            finally:
                if alarm is not None:
                    alarm.cancel()
            self._ensure_usable()

    def _remaining_s(self, until: float | None) -> float | None:
        return None if until is None else max(0.0, until - self._loop.time())

    async def _finish(self) -> None:
        if not self._is_half_open:
            await self._inner.aclose()

    def _drop(self) -> None:
        self._inner.abort()

    async def quiet(self) -> None:
        await self._inner.quiet()


def _place(fault: Fault, held: Incoming) -> int:
    """The byte of the message that the fault hits, counted over header and regions."""
    return fault.byte % max(1, len(held.header) + sum(held.sizes))


def _flipped(
    header: bytes, regions: tuple[Region, ...], fault: Fault
) -> tuple[bytes, tuple[Region, ...]]:
    """Copies of header and regions with one bit inverted; the originals stay as they are."""
    copies = [bytearray(header), *[bytearray(region.view()) for region in regions]]
    size = sum(len(copy) for copy in copies)
    if size:
        _flip([memoryview(copy) for copy in copies], fault.byte % size, fault.bit)
    return bytes(copies[0]), tuple(Region.of(copy) for copy in copies[1:])


def _flip(views: list[memoryview], byte: int, bit: int) -> None:
    for view in views:
        if byte < view.nbytes:
            view[byte] ^= 1 << (bit % 8)
            return
        byte -= view.nbytes


def _copy_first(count: int, sources: list[bytearray], regions: tuple[Region, ...]) -> None:
    for source, region in zip(sources, regions, strict=True):
        size = max(0, min(count, region.nbytes))
        if size:
            region.view()[:size] = source[:size]
        count -= size
