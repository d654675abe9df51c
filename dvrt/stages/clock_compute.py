"""The null device's compute on a real loop: a timeline of its own, like an accelerator's queue.

The host gives work to an accelerator without waiting, and is woken when it is done. So it is here:
when a piece of work begins, what it does is done at once, inline; its result is there when the
device's time for it has passed. So the loop stands still for as long as the work itself takes,
which is meant to be next to nothing, and work that never ends is found as a worker that is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from dvrt.fine_timer import FineTimer
from dvrt.stages.compute import Done

T = TypeVar("T")


class _Given(NamedTuple):
    work: Callable[[], Any]
    cost_s: float
    future: asyncio.Future[Any]


class ClockCompute:
    """One device: work takes its ``cost_s`` after all that was submitted before it.

    What costs nothing, such as packing copies, takes its turn and none of the device's time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = FineTimer(self._end)
        self._given: deque[_Given] = deque()
        self._free_at = 0.0
        self._running: asyncio.Future[Any] | None = None
        self._outcome: Done[Any] | BaseException
        self._is_closed = False

    def submit(self, work: Callable[[], T], *, cost_s: float = 0.0) -> asyncio.Future[Done[T]]:
        future: asyncio.Future[Done[T]] = self._loop.create_future()
        if self._is_closed:
            future.cancel()
            return future
        self._given.append(_Given(work, cost_s, future))
        if self._running is None and len(self._given) == 1:
            self._free_at = max(self._free_at, time.monotonic())
            self._begin()
        return future

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.abandon)

    def abandon(self) -> None:
        self._is_closed = True
        self._timer.close()
        for future in (self._running, *[each.future for each in self._given]):
            if future is not None:
                future.cancel()
        self._running = None
        self._given.clear()

    def _begin(self) -> None:
        """Begin the next work: when it was given, or when the one before it ended."""
        work, cost_s, self._running = self._given.popleft()
        began = self._free_at if cost_s else time.monotonic()
        try:
            value = work()
            ends = max(began + cost_s, time.monotonic())
            self._outcome = Done(value=value, began=began, busy_s=ends - began)
        except StopIteration as error:  # no future takes one
            ends, self._outcome = time.monotonic(), RuntimeError(f"the work raised {error!r}")
        except BaseException as error:  # it belongs to the waiter, whatever it is
            ends, self._outcome = time.monotonic(), error
        if not cost_s:
            self._end()
        elif not self._is_closed:
            self._free_at = ends
            self._timer.set(ends)

    def _end(self) -> None:
        future, self._running = self._running, None
        if future is not None and not future.done():
            if isinstance(self._outcome, BaseException):
                future.set_exception(self._outcome)
            else:
                future.set_result(self._outcome)
        if self._given:
            self._loop.call_soon(self._begin_next)  # behind whoever waits for this result

    def _begin_next(self) -> None:
        if self._running is None and self._given:
            self._begin()
