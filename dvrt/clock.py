"""Time as a value: who needs the time takes a Clock.

Inside asyncio code the loop's own clock is the Clock (``loop.time``); pure code gets ``now``
with each event and never looks at a clock at all.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds from an arbitrary start."""

    def time(self) -> float: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def time(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves when told to; for tests of pure code."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not run backwards ({seconds=})")
        self._now += seconds
