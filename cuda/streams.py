"""A CUDA stream as a lane of copies: enqueued in order, completed by events, never polled.

Everything of CuPy's that is used here is handed in, so that the logic runs without a GPU too.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dvrt.cuda.fences import Fence, Timeline
from dvrt.errors import DvrtError

Enqueue = Callable[[], object]


class StreamFence(Fence):
    """A fence whose event, once it is recorded, other streams can wait for on the device."""

    __slots__ = ("event",)

    def __init__(self, timeline: Timeline, number: int) -> None:
        super().__init__(timeline, number)
        self.event: Any = None


class StreamTimeline(Timeline):
    def _make(self, number: int) -> StreamFence:
        return StreamFence(self, number)

    def issue(self) -> StreamFence:
        fence = super().issue()
        assert isinstance(fence, StreamFence)
        return fence


@dataclass(slots=True)
class _Job:
    enqueue: Enqueue
    after: Sequence[Fence]
    fence: StreamFence


@dataclass(slots=True)
class _Recorded:
    """Work that is on its stream, or why it is not; ``kept`` must outlive it."""

    fence: StreamFence
    error: BaseException | None = None
    kept: object = None


class StreamLane:
    """Work for one stream, enqueued at once unless something on the host must end first, or
    enqueueing takes long.

    What ``enqueue`` returns is kept alive until its work is done.
    One thread enqueues what had to wait, one thread sleeps on the events; both end with ``aclose``.
    """

    def __init__(self, name: str, *, cupy: Any, device: Any, stream: Any) -> None:
        self.timeline = StreamTimeline(name)
        self._cupy, self._device, self._stream = cupy, device, stream
        self._order = threading.Lock()
        self._n_waiting = 0
        self._is_closing = False
        self._late: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._recorded: queue.SimpleQueue[_Recorded | None]
        self._recorded = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"{name} {verb}", daemon=True)
            for verb, target in (("enqueue", self._enqueue_late), ("complete", self._complete))
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, enqueue: Enqueue, *, after: Sequence[Fence] = (), may_block: bool = False
    ) -> Fence:
        """Run ``enqueue`` with this stream current, after ``after``; done when its work is.

        One that ``may_block`` runs on the lane's own thread, and what comes meanwhile behind it.
        """
        with self._order:
            if self._is_closing:
                raise DvrtError("the device was closed before this work began")
            fence = self.timeline.issue()
            job = _Job(enqueue, after, fence)
            if may_block or self._n_waiting or not all(_is_orderable(f) for f in after):
                self._n_waiting += 1
                self._late.put(job)
            else:
                self._enqueue(job)
        return fence

    def mark(self) -> Fence:
        """Done when everything that is on the stream now is done."""
        return self.submit(lambda: None)

    async def aclose(self) -> None:
        with self._order:
            if not self._is_closing:
                self._is_closing = True
                self._late.put(None)
        await self.timeline.latest().ended()
        for thread in self._threads:
            thread.join()

    def _enqueue(self, job: _Job) -> None:
        """Put the work and its event on the stream; a failure travels to the fence in its turn."""
        try:
            with self._device, self._stream:
                for fence in job.after:
                    if fence.is_done:
                        fence.result()
                    elif isinstance(fence, StreamFence):
                        self._stream.wait_event(fence.event)
                kept = job.enqueue()
                event = self._cupy.cuda.Event(block=True, disable_timing=True)
                event.record(self._stream)
        except Exception as error:
            self._recorded.put(_Recorded(job.fence, error))
            return
        job.fence.event = event
        self._recorded.put(_Recorded(job.fence, kept=kept))

    def _enqueue_late(self) -> None:
        while (job := self._late.get()) is not None:
            try:
                for fence in job.after:
                    if not _is_orderable(fence):
                        fence.wait()
            except Exception:
                pass  # the fence is done by now, and its failure is raised from _enqueue
            self._enqueue(job)  # nobody else does while somebody waits
            with self._order:
                self._n_waiting -= 1
        self._recorded.put(None)

    def _complete(self) -> None:
        while (item := self._recorded.get()) is not None:
            if item.error is None:
                try:
                    with self._device:
                        item.fence.event.synchronize()
                except Exception as error:
                    item.error = error
            self.timeline.reach(item.fence, item.error)
            del item


def _is_orderable(fence: Fence) -> bool:
    """Whether a stream can be ordered after it now, without a thread that waits."""
    return fence.is_done or (isinstance(fence, StreamFence) and fence.event is not None)
