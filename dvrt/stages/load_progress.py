"""Word of how far a stage's weights have come, from the thread that reads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from dvrt.protocol.messages import LoadStage, StageLoading

INTERVAL_S = 0.25
"""News comes at most so often: a tensor may take a millisecond."""


class LoadProgress:
    """Called with (bytes read, bytes in all) on any thread; calls ``tell`` now and then, on the
    loop that it is made on."""

    def __init__(self, worker: str, order: LoadStage, tell: Callable[[StageLoading], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker, self._order, self._tell = worker, order, tell
        self._told_at = time.monotonic()

    def __call__(self, read_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now - self._told_at < INTERVAL_S:
            return
        self._told_at = now
        news = StageLoading(
            worker=self._worker,
            pipeline=self._order.pipeline,
            stage=self._order.stage,
            read_bytes=read_bytes,
            total_bytes=total_bytes,
        )
        with suppress(RuntimeError):  # the loop is closed: nobody waits for this stage any more
            self._loop.call_soon_threadsafe(self._tell, news)
