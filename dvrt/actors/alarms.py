"""Alarms: what is to happen if something takes too long, each under a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Alarms(Generic[K]):
    """At most one alarm a key. Belongs to the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def set(self, key: K, limit_s: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call ``callback(*args)`` after ``limit_s``, in the place of the key's former alarm."""
        self.quiet(key)
        self._timers[key] = self._loop.call_later(limit_s, callback, *args)

    def quiet(self, key: K) -> None:
        """It did not take too long; harmless without an alarm."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Nothing is to happen any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
