"""A virtual loop that gives up: where time stands still, no limit in seconds helps."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from dvrt.errors import DvrtError
from dvrt.virtual import VirtualLoop


class Livelock(DvrtError):
    """So many turns of the loop, and no end."""


class _LimitedLoop(VirtualLoop):
    def __init__(self, seed: int, max_turns: int) -> None:
        super().__init__(seed)
        self.main: asyncio.Task[None] | None = None
        self.left = max_turns

    def _run_once(self) -> None:
        self.left -= 1
        if self.left == 0 and self.main is not None:
            self.main.cancel()
        super()._run_once()


def run_limited(main: Coroutine[Any, Any, None], *, seed: int, max_turns: int) -> None:
    """As ``run_virtual``; cancels ``main`` and raises Livelock after so many turns."""
    loop = _LimitedLoop(seed, max_turns)

    async def follow() -> None:
        loop.main = asyncio.current_task()
        await main

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            runner.run(follow())
        except asyncio.CancelledError:
            if loop.left > 0:
                raise
            raise Livelock(f"no end in {max_turns} turns of the loop") from None
