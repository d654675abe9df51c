"""Lanes: work done one piece at a time, in order, on a thread or by a loop's timers."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dvrt.cuda.fences import Fence, Timeline
from dvrt.errors import DvrtError

Work = Callable[[], object]


class Lane(Protocol):
    """First in, first out; ``submit`` never blocks. Work that raises fails its fence alone."""

    timeline: Timeline

    def submit(self, work: Work, *, after: Sequence[Fence] = (), cost_s: float = 0.0) -> Fence:
        """Run ``work`` once all of ``after`` are done; it takes at least ``cost_s``.

        A failure among ``after`` fails this work without running it.
        """
        ...

    async def aclose(self) -> None:
        """Fail what has not begun; return when what has begun is over. Twice is harmless."""
        ...


@dataclass(slots=True)
class _Job:
    work: Work
    after: Sequence[Fence]
    cost_s: float
    fence: Fence


def _closed() -> DvrtError:
    return DvrtError("the device was closed before this work began")


class ThreadLane:
    """Work on a thread of its own, which sleeps where work costs more than it took."""

    def __init__(self, name: str) -> None:
        self.timeline = Timeline(name)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._order = threading.Lock()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Work, *, after: Sequence[Fence] = (), cost_s: float = 0.0) -> Fence:
        with self._order:
            if self._is_closing:
                raise _closed()
            fence = self.timeline.issue()
            self._jobs.put(_Job(work, after, cost_s, fence))
        return fence

    async def aclose(self) -> None:
        with self._order:
            if not self._is_closing:
                self._is_closing = True
                self._jobs.put(None)
        await self.timeline.latest().ended()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._do(job)
            except BaseException as error:  # it belongs to whoever waits, whatever it is
                self.timeline.reach(job.fence, error)
            else:
                self.timeline.reach(job.fence)

    def _do(self, job: _Job) -> None:
        for fence in job.after:
            fence.wait()
        if self._is_closing:
            raise _closed()
        began = time.monotonic()
        job.work()
        left_s = job.cost_s - (time.monotonic() - began)
        if left_s > 0:
            time.sleep(left_s)


class LoopLane:
    """Work inline on the running loop, which lets ``cost_s`` of its time pass."""

    def __init__(self, name: str) -> None:
        self.timeline = Timeline(name)
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job] = deque()
        self._timer: asyncio.Handle | None = None
        self._is_closing = False

    def submit(self, work: Work, *, after: Sequence[Fence] = (), cost_s: float = 0.0) -> Fence:
        if self._is_closing:
            raise _closed()
        fence = self.timeline.issue()
        self._jobs.append(_Job(work, after, cost_s, fence))
        if len(self._jobs) == 1:
            self._begin()
        return fence

    async def aclose(self) -> None:
        self._is_closing = True
        if self._timer is not None:
            self._timer.cancel()
        while self._jobs:
            self.timeline.reach(self._jobs.popleft().fence, _closed())

    def _begin(self) -> None:
        """Start the first job, or arrange to look again when what it waits for is done."""
        if not self._jobs:
            return
        job = self._jobs[0]
        for fence in job.after:
            if not fence.is_done:
                fence.timeline.when_reached(fence.number, self._begin_soon)
                return
        self._timer = self._loop.call_at(self._loop.time() + job.cost_s, self._finish)

    def _begin_soon(self) -> None:
        if not self._is_closing:
            self._loop.call_soon_threadsafe(self._begin)

    def _finish(self) -> None:
        job = self._jobs[0]
        error: Exception | None = None
        try:
            for fence in job.after:
                fence.result()
            job.work()
        except Exception as caught:
            error = caught
        self._jobs.popleft()
        self.timeline.reach(job.fence, error)
        self._begin()
