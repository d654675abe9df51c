"""A spare's weights in its host's memory, before it is known which of them it will need."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from dvrt.actors.messages import LoadStage
from dvrt.models.read_ahead import read_ahead


class Warmth:
    """What a worker has done for the stages that it may have to load. Belongs to its loop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._is_over = False

    def begin(self, order: LoadStage) -> None:
        """Get the weights of this order's model, of all stages; the first time only."""
        if self._task is None and not self._is_over:
            self._task = asyncio.get_running_loop().create_task(self._warm_up(order))

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
        """Get no more; harmless twice."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()

    async def _warm_up(self, order: LoadStage) -> None:
        if order.spec.device == "null":
            await asyncio.sleep(order.n_stages * order.timing.read_s if order.timing else 0.0)
            return
        directory = Path(order.spec.directory)
        with suppress(OSError):  # whoever loads it says what is wrong
            await asyncio.to_thread(read_ahead, directory, is_over=lambda: self._is_over)
