"""The stream of a request that a journal keeps: whoever comes gets it from its first emit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from dvrt.cluster.journal_store import Asked
from dvrt.cluster.stream import RequestStream
from dvrt.control.events import Emit
from dvrt.errors import DvrtError
from dvrt.requests import FinishReason


class KeptStream(RequestStream):
    """Any number of readers, each with ``async for``; all emits stay until the last one is gone.

    ``linger_s`` is how long it may be without a reader, from the start too, before it is cancelled.
    """

    def __init__(self, asked: Asked, *, submitted: float, linger_s: float) -> None:
        super().__init__(asked.request, submitted=submitted)
        self.asked = asked
        self._linger_s = linger_s
        self._kept: list[Emit] = []
        self._readers: set[asyncio.Future[None]] = set()
        self._n_readers = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_spoiled(self) -> bool:
        """It has ended, and not by what it says: it was cancelled, or something failed."""
        spoilers = (FinishReason.CANCELLED, FinishReason.ERROR)
        return self.is_ended and any(emit.finish in spoilers for emit in self._kept)

    def recall(self, emits: tuple[Emit, ...]) -> None:
        """These were emitted in an earlier life."""
        for emit in emits:
            self.put(emit, self.submitted)

    def enter(self) -> None:
        """A reader has come, who will ``leave``."""
        self._n_readers += 1
        self._stop_timer()

    def leave(self, cancel: Callable[[str], None]) -> None:
        self._n_readers -= 1
        if not self._n_readers:
            self.linger(cancel)

    def linger(self, cancel: Callable[[str], None]) -> None:
        """Nobody reads: cancel the request unless somebody comes in time."""
        self._stop_timer()
        if not self.is_ended:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._linger_s, cancel, self.request.id)

    def put(self, emit: Emit, now: float) -> float | None:
        gap = super().put(emit, now)
        self._emits.clear()
        self._kept.append(emit)
        if self.is_ended:
            self._stop_timer()
        return gap

    def fail(self, error: DvrtError) -> None:
        super().fail(error)
        self._stop_timer()

    def __aiter__(self) -> AsyncIterator[Emit]:
        return _Reader(self)

    async def at(self, index: int) -> Emit | None:
        """The emit with this number, once it is there; None behind the last. Raises what ended the
        stream."""
        while index >= len(self._kept):
            if self._error is not None:
                raise self._error.with_traceback(None)
            if not self._open_samples:
                return None
            waiter = asyncio.get_running_loop().create_future()
            self._readers.add(waiter)
            try:
                await waiter
            finally:
                self._readers.discard(waiter)
        return self._kept[index]

    def _wake(self) -> None:
        for waiter in self._readers:
            if not waiter.done():
                waiter.set_result(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Reader:
    """One pass over a stream."""

    def __init__(self, stream: KeptStream) -> None:
        self._stream = stream
        self._next = 0

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Emit:
        emit = await self._stream.at(self._next)
        if emit is None:
            raise StopAsyncIteration
        self._next += 1
        return emit
