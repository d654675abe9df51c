"""Fences: points on a timeline of work that finishes in order; waited for without blocking a loop.

A timeline belongs to whatever does the work (a thread, a stream, a loop's timers), which issues
fences and reaches them. Everybody else only asks and waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable

from dvrt.errors import TransferTimeout

Callback = Callable[[], object]


class Fence:
    """Work number ``number`` of a timeline, and its failure if it failed."""

    __slots__ = ("error", "number", "timeline")

    def __init__(self, timeline: Timeline, number: int) -> None:
        self.timeline = timeline
        self.number = number
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        state = "failed" if self.error else "done" if self.is_done else "pending"
        return f"<Fence {self.timeline.name} {self.number} {state}>"

    @property
    def is_done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self.timeline.reached >= self.number

    def result(self) -> None:
        """Raise what the work raised; only once it is done."""
        if self.error is not None:
            raise self.error

    async def done(self, *, deadline_s: float | None = None) -> None:
        """Return when the work has ended; raises its error. TransferTimeout at the deadline.

        Cancelling ends the waiting, not the work.
        """
        await self.ended(deadline_s=deadline_s)
        self.result()

    async def ended(self, *, deadline_s: float | None = None) -> None:
        """``done``, but the work's error is nobody's."""
        if self.is_done:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass

        self.timeline.when_reached(self.number, wake)
        try:
            async with asyncio.timeout(deadline_s):
                await future
        except TimeoutError:
            raise TransferTimeout(f"{self!r} was not over by its deadline") from None

    def wait(self, *, timeout_s: float | None = None) -> None:
        """Block this thread until the work has ended; never on an event loop's thread."""
        if not self.is_done:
            event = threading.Event()
            self.timeline.when_reached(self.number, event.set)
            if not event.wait(timeout_s):
                raise TransferTimeout(f"{self!r} was not over by its deadline")
        self.result()


class Timeline:
    """Numbers of work, issued and reached in order. Safe to use from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = 0
        self._issued = 0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Callback]] = deque()
        self._last = self._make(0)

    def __repr__(self) -> str:
        return f"<Timeline {self.name} {self.reached} of {self._issued}>"

    def issue(self) -> Fence:
        with self._lock:
            self._issued += 1
            self._last = self._make(self._issued)
            return self._last

    def _make(self, number: int) -> Fence:
        return Fence(self, number)

    def latest(self) -> Fence:
        """The fence issued last: done when all that was issued so far is done."""
        return self._last

    @property
    def is_idle(self) -> bool:
        return self.reached >= self._issued

    def reach(self, fence: Fence, error: BaseException | None = None) -> None:
        """The fence's work ended; fences must be reached in the order they were issued in."""
        fence.error = error
        with self._lock:
            if fence.number != self.reached + 1:
                raise AssertionError(f"{self!r} reached {fence.number} out of order")
            self.reached = fence.number
            ready = [c for number, c in self._waiting if number <= self.reached]
            self._waiting = deque(w for w in self._waiting if w[0] > self.reached)
        for callback in ready:
            callback()

    def when_reached(self, number: int, callback: Callback) -> None:
        """Call once the number is reached, at once if it is; on whatever thread reaches it."""
        with self._lock:
            if self.reached < number:
                self._waiting.append((number, callback))
                return
        callback()


async def all_done(fences: Iterable[Fence], *, deadline_s: float | None = None) -> None:
    """Wait for all; raises the first error found after every one has ended."""
    pending = list(fences)
    try:
        async with asyncio.timeout(deadline_s):
            for fence in pending:
                await fence.ended()
    except TimeoutError:
        raise TransferTimeout(f"{len(pending)} fences were not over by their deadline") from None
    for fence in pending:
        fence.result()
