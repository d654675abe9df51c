"""Whether a compute makes progress: a worker can be alive, beat, and compute for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class StepWatch:
    """Counts the steps, or whatever else, that are begun and not ended; they end in their order.

    ``on_stuck`` is called, once, when none has been finished for ``limit_s`` though there were
    some; 0 is no limit. Belongs to the running loop. A step costs no timer.
    """

    def __init__(self, limit_s: float, on_stuck: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_s, self._on_stuck = limit_s, on_stuck
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.n_open = 0

    def began(self) -> None:
        """One more step waits or is computed."""
        if not self.n_open:
            self._since = self._loop.time()
        self.n_open += 1
        if self._timer is None and self._limit_s:
            self._timer = self._loop.call_later(self._limit_s, self._look)

    def ended(self) -> None:
        """The oldest step is over."""
        self.n_open -= 1
        self._since = self._loop.time()

    def close(self) -> None:
        """Look no more."""
        self._limit_s = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self.n_open:
            return
        left_s = self._since + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self.close()
            self._on_stuck()
