"""A stage's compute for those who have no step: what they wait for is watched, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dvrt.stages.compute import Done, Submits
from dvrt.stages.step_watch import StepWatch

T = TypeVar("T")


class WatchedCompute:
    """Hands work on to ``compute`` and has ``watch`` follow it."""

    def __init__(self, compute: Submits, watch: StepWatch) -> None:
        self._compute, self._watch = compute, watch

    def submit(self, work: Callable[[], T], *, cost_s: float = 0.0) -> asyncio.Future[Done[T]]:
        future = self._compute.submit(work, cost_s=cost_s)
        self._watch.follow(future)
        return future
