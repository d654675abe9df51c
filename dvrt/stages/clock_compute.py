"""The null device's compute on a real loop: a timeline of its own, like an accelerator's queue.

The host gives work to an accelerator without waiting for it, and is woken when it is done. So it
is here: what the work does is done when it is given, which is next to nothing, and its result is
there when the device's time for it has passed.
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
    """Work whose result is there at ``ends`` of the monotonic clock."""

    ends: float
    future: asyncio.Future[Any]
    done: Done[Any] | BaseException


class ClockCompute:
    """One device: work takes its ``cost_s`` after all that was submitted before it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = FineTimer(self._settle)
        self._free_at = 0.0
        self._given: deque[_Given] = deque()
        self._is_closed = False

    def submit(self, work: Callable[[], T], *, cost_s: float = 0.0) -> asyncio.Future[Done[T]]:
        future: asyncio.Future[Done[T]] = self._loop.create_future()
        if self._is_closed:
            future.cancel()
            return future
        began = max(self._free_at, time.monotonic())
        done: Done[T] | BaseException
        try:
            value = work()
        except Exception as error:  # it belongs to the waiter, whatever it is
            ends, done = max(began, time.monotonic()), error
        else:
            ends = max(began + cost_s, time.monotonic())
            done = Done(value=value, began=began, busy_s=ends - began)
        self._free_at = ends
        self._given.append(_Given(ends, future, done))
        if len(self._given) == 1:
            self._timer.set(ends)
        return future

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.abandon)

    def abandon(self) -> None:
        self._is_closed = True
        self._timer.close()
        for each in self._given:
            each.future.cancel()
        self._given.clear()

    def _settle(self) -> None:
        now = time.monotonic()
        while self._given and self._given[0].ends <= now:
            _, future, done = self._given.popleft()
            if future.done():
                continue
            if isinstance(done, BaseException):
                future.set_exception(done)
            else:
                future.set_result(done)
        if self._given:
            self._timer.set(self._given[0].ends)
