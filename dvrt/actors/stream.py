"""One request's way out: the emits of its samples, from the controller to whoever iterates."""

from __future__ import annotations

import asyncio
from collections import deque

from dvrt.control.events import Emit
from dvrt.errors import DvrtError
from dvrt.requests import Request
from dvrt.results import Timings


class RequestStream:
    """Emits in order, ended by the last sample's end or by an error.

    Bounded by the request itself: at most ``max_tokens`` times ``n`` emits. One consumer.
    """

    def __init__(self, request: Request, *, submitted: float) -> None:
        self.request = request
        self.n_generated = 0
        self._emits: deque[Emit] = deque()
        self._error: DvrtError | None = None
        self._open_samples = request.n
        self._waiter: asyncio.Future[None] | None = None
        self.submitted = submitted
        self._admitted: float | None = None
        self._first: float | None = None
        self._last: float | None = None

    @property
    def is_ended(self) -> bool:
        return not self._open_samples or self._error is not None

    def admitted(self, now: float) -> None:
        self._admitted = now

    def put(self, emit: Emit, now: float) -> None:
        if emit.token is not None:
            self.n_generated += 1
            self._first = now if self._first is None else self._first
        self._last = now
        self._open_samples -= emit.finish is not None
        self._emits.append(emit)
        self._wake()

    def fail(self, error: DvrtError) -> None:
        """End the stream with an error, unless it has ended; earlier emits are still delivered."""
        if not self.is_ended:
            self._error = error
            self._wake()

    def timings(self) -> Timings:
        """Meaningful once the stream has ended."""
        last = self._last if self._last is not None else self.submitted
        first = self._first if self._first is not None else last
        admitted = self._admitted if self._admitted is not None else last
        return Timings(
            queued_s=admitted - self.submitted,
            first_token_s=first - self.submitted,
            total_s=last - self.submitted,
        )

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Emit:
        while not self._emits:
            if self._error is not None:
                raise self._error.with_traceback(None)  # one error ends many streams
            if not self._open_samples:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._emits.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
