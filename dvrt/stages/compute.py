"""Where a stage computes: one piece of work at a time, in order.

A real device works on a thread of its own, so that the event loop goes on. Under virtual time the
work is done inline and costs the virtual seconds that it is said to cost; the null device has a
clock (``clock_compute``).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[T]):
    """What a piece of work gave, and since when and how long the device was occupied with it."""

    value: T
    began: float
    busy_s: float


class Submits(Protocol):
    """Takes work, first in, first out; ``submit`` never waits for it."""

    def submit(self, work: Callable[[], T], *, cost_s: float = 0.0) -> asyncio.Future[Done[T]]:
        """Run ``work`` after all that was submitted before it; it takes at least ``cost_s``."""
        ...


class Compute(Submits, Protocol):
    """What computes, and ends."""

    def close(self) -> None:
        """Drop what has not begun; wait for what a thread has begun. From any thread."""
        ...

    def abandon(self) -> None:
        """As ``close``, without waiting."""
        ...


class ThreadCompute:
    """Work on one thread; futures complete on the loop that made this object."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], float, asyncio.Future[Any]] | None]
        self._work = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"{name} compute", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T], *, cost_s: float = 0.0) -> asyncio.Future[Done[T]]:
        future: asyncio.Future[Done[T]] = self._loop.create_future()
        if self._closing:
            future.cancel()
        else:
            self._work.put((work, cost_s, future))
        return future

    def close(self) -> None:
        self.abandon()
        self._thread.join()

    def abandon(self) -> None:
        self._closing = True
        self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, cost_s, future = item
            if self._closing:
                self._settle(future.cancel)
                continue
            try:
                done = _timed(work, cost_s)
            except BaseException as error:  # it belongs to the waiter, whatever it is
                self._settle(partial(_fail, future, error))
            else:
                self._settle(partial(_succeed, future, done))

    def _settle(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._closing = True


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _succeed(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _timed(work: Callable[[], T], cost_s: float) -> Done[T]:
    began = time.monotonic()
    value = work()
    left_s = cost_s - (time.monotonic() - began)
    if left_s > 0:
        time.sleep(left_s)
    return Done(value=value, began=began, busy_s=time.monotonic() - began)


class LoopCompute:
    """Work inline on the loop, which is then taken as busy for ``cost_s`` of the loop's time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._free_at = 0.0
        self._queue: deque[tuple[Callable[[], Any], float, asyncio.Future[Any]]] = deque()
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    def submit(self, work: Callable[[], T], *, cost_s: float = 0.0) -> asyncio.Future[Done[T]]:
        future: asyncio.Future[Done[T]] = self._loop.create_future()
        if self._closed:
            future.cancel()
            return future
        self._free_at = max(self._free_at, self._loop.time()) + cost_s
        self._queue.append((work, cost_s, future))

        def run() -> None:
            self._timers.discard(timer)
            self._run_next()

        timer = self._loop.call_at(self._free_at, run)
        self._timers.add(timer)
        return future

    def close(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        self._closed = True
        self._queue.clear()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _run_next(self) -> None:
        """The oldest work: timers that are due at the same instant may fire in any order."""
        work, cost_s, future = self._queue.popleft()
        if future.done():
            return
        try:
            began = self._loop.time() - cost_s
            future.set_result(Done(value=work(), began=began, busy_s=cost_s))
        except Exception as error:
            future.set_exception(error)
