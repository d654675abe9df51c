"""Whether a stage's compute makes progress: a worker can be alive, beat, and compute for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class StepWatch:
    """Counts the steps, and what else is computed, that have begun and not ended.

    ``on_stuck`` is called, once, when nothing has ended for ``limit_s`` though there was something;
    0 is no limit. Belongs to the running loop. Work costs no timer.
    """

    def __init__(self, limit_s: float, on_stuck: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_s, self._on_stuck = limit_s, on_stuck
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._n_others = 0
        self.n_steps = 0

    def began(self) -> None:
        """One more step waits or is computed."""
        self._begin()
        self.n_steps += 1

    def ended(self) -> None:
        """A step is over."""
        self.n_steps -= 1
        self._since = self._loop.time()

    def follow(self, future: asyncio.Future[Any]) -> None:
        """Something that is no step is computed until the future ends."""
        self._begin()
        self._n_others += 1
        future.add_done_callback(self._other_ended)

    def close(self) -> None:
        """Look no more."""
        self._limit_s = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        if not self.n_steps + self._n_others:
            self._since = self._loop.time()
        if self._timer is None and self._limit_s:
            self._timer = self._loop.call_later(self._limit_s, self._look)

    def _other_ended(self, future: asyncio.Future[Any]) -> None:
        self._n_others -= 1
        if not future.cancelled():  # else nobody waits for it, which is no progress
            self._since = self._loop.time()

    def _look(self) -> None:
        self._timer = None
        if not self.n_steps + self._n_others:
            return
        left_s = self._since + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self.close()
            self._on_stuck()
