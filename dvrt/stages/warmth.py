"""What a spare does ahead, before it is known which stage it will be."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dvrt.protocol.messages import LoadStage

Prepare = Callable[[Sequence[LoadStage], Callable[[], bool]], None]
"""Does for these stages of one model what can be done ahead, until it is told that it is over;
never raises. Runs on a thread of its own."""
LOW_PRIORITY = 10
"""Not the lowest: whoever waits for Python's lock, or another one that this thread has, waits for
its turn."""


class Warmth:
    """What a worker has done for the stages that it may have to load. Belongs to its loop."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._reading: asyncio.Task[None] | None = None
        self._has_begun = False
        self._is_over = False

    def begin(self, orders: Sequence[LoadStage]) -> None:
        """Prepare for these stages of a model; the first time only."""
        if self._is_over or self._has_begun or not orders:
            return
        self._has_begun = True
        first = orders[0]
        if first.spec.device == "null":
            read_s = first.n_stages * first.timing.read_s if first.timing else 0.0
            self._reading = asyncio.get_running_loop().create_task(asyncio.sleep(read_s))
            return
        thread = ThreadPoolExecutor(1, "dvrt warm-up", initializer=_give_way)
        thread.submit(self._prepare, orders, lambda: self._is_over)
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
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
