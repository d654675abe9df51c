"""What a spare does ahead, before it is known which stage it will be."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dvrt.protocol.messages import LoadStage

Prepare = Callable[[Sequence[LoadStage], Callable[[], bool]], None]
"""Does for these stages of one model what can be done ahead, until it is told that it is over;
never raises. Runs on a thread of its own."""
LOWEST_PRIORITY = 19


class Warmth:
    """What a worker has done for the stages that it may have to load. Belongs to its loop."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._reading: asyncio.Task[None] | None = None
        self._work: Future[None] | None = None
        self._is_over = False

    @property
    def is_at_work(self) -> bool:
        """Whether the thread still does something, though it may have been told that it is over."""
        return self._work is not None and not self._work.done()

    def begin(self, orders: Sequence[LoadStage]) -> None:
        """Prepare for these stages of a model; the first time only."""
        if self._is_over or not orders or self._reading is not None or self._work is not None:
            return
        first = orders[0]
        if first.spec.device == "null":
            read_s = first.n_stages * first.timing.read_s if first.timing else 0.0
            self._reading = asyncio.get_running_loop().create_task(asyncio.sleep(read_s))
            return
        thread = ThreadPoolExecutor(1, "dvrt warm-up", initializer=_give_way)
        self._work = thread.submit(self._prepare, orders, lambda: self._is_over)
        thread.shutdown(wait=False)

    async def wait(self, order: LoadStage) -> None:
        """Return when the order's weights are in host memory, on the null device; on others at
        once, where loading reads what is missing: no more is prepared."""
        if order.timing is None:
            self._is_over = True
        elif self._reading is not None:
            await asyncio.shield(self._reading)
        else:
            await asyncio.sleep(order.timing.read_s)

    def close(self) -> None:
        """Do no more; harmless twice."""
        self._is_over = True
        if self._reading is not None:
            self._reading.cancel()


def _give_way() -> None:
    """On Linux a thread has a priority of its own: those who serve go first."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
