"""A stage's compute as those use it who have no step: what they wait for is watched, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dvrt.stages.compute import Compute, Done
from dvrt.stages.step_watch import StepWatch

T = TypeVar("T")


class WatchedCompute:
    """Hands everything on to ``compute`` and lets ``watch`` know. Belongs to the running loop."""

    def __init__(self, compute: Compute, watch: StepWatch) -> None:
        self._compute, self._watch = compute, watch

    def submit(self, work: Callable[[], T], *, cost_s: float = 0.0) -> asyncio.Future[Done[T]]:
        """As ``Compute.submit``."""
        future = self._compute.submit(work, cost_s=cost_s)
        self._watch.began()
        future.add_done_callback(lambda _: self._watch.ended())
        return future

    def close(self) -> None:
        self._compute.close()

    def abandon(self) -> None:
        self._compute.abandon()
