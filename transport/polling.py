"""Staying awake between messages that come in quick succession.

A receiver that falls asleep between two of them has to be woken by the sender's write, which costs
the sender more than a small copy, most of all on virtual machines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SUCCESSION_S = 200e-6
"""Messages further apart than this are awaited asleep."""


class Polling:
    """Keeps the running loop from sleeping while messages follow each other closely.

    ``clock`` gives seconds; uvloop's own knows no microseconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop, self._clock = asyncio.get_running_loop(), clock
        self._last = self._until = 0.0
        self._handle: asyncio.Handle | None = None

    @property
    def is_awake(self) -> bool:
        """Whether the loop looks for events without waiting."""
        return self._handle is not None

    def came(self) -> None:
        """A message was received."""
        now = self._clock()
        if now - self._last < SUCCESSION_S:
            self._until = now + SUCCESSION_S
            if self._handle is None:
                self._handle = self._loop.call_soon(self._stay)
        self._last = now

    def close(self) -> None:
        """Let the loop sleep; twice is harmless."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _stay(self) -> None:
        """A loop that has a callback to run does not wait."""
        is_due = self._clock() < self._until
        self._handle = self._loop.call_soon(self._stay) if is_due else None
