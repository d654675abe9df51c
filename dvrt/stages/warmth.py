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
LOWEST_PRIORITY = 19


class Warmth:
    """What a worker has done for the stages that it may have to load. Belongs to its loop."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    def begin(self, orders: Sequence[LoadStage]) -> None:
        """Prepare for these stages of a model; the first time only."""
        if orders and self._task is None and not self._is_over:
            self._task = asyncio.get_running_loop().create_task(self._warm_up(orders))

    async def wait(self, order: LoadStage) -> None:
        """Return when the order's weights are in host memory, on the null device; on others at
        once, where loading reads what is missing."""
        if order.timing is None:
            return
        if self._task is not None:
            await asyncio.shield(self._task)
        else:
            await asyncio.sleep(order.timing.read_s)

    def close(self) -> None:
        """Do no more; harmless twice."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()

    async def _warm_up(self, orders: Sequence[LoadStage]) -> None:
        order = orders[0]
        if order.spec.device == "null":
            await asyncio.sleep(order.n_stages * order.timing.read_s if order.timing else 0.0)
            return
        thread = ThreadPoolExecutor(1, "dvrt warm-up", initializer=_give_way)
        try:
            await asyncio.get_running_loop().run_in_executor(
                thread, self._prepare, orders, lambda: self._is_over
            )
        finally:
            thread.shutdown(wait=False)


def _give_way() -> None:
    """On Linux a thread has a priority of its own: those who serve go first."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
