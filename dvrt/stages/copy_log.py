"""What a stage's copies took and when, for the controller's trace: swaps, ships, replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dvrt.clock import Clock
from dvrt.protocol.messages import Copies, LoadStage
from dvrt.virtual import precise_clock

TELL_AFTER_S = 0.2
MAX_HELD = 512
"""Copies that are told of together; more are told of at once."""


class CopyLog:
    """Collects copies of one stage and tells of them a little later; nothing unless it is traced.

    Belongs to the running loop, in whose time ``began`` is; ``clock`` has that time.
    """

    def __init__(self, order: LoadStage, tell: Callable[[Copies], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.clock: Clock = precise_clock(self._loop)
        self._order, self._tell = order, tell
        self._held: list[tuple[str, str, float, float, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def add(
        self, lane: str, name: str, began: float, nbytes: int, busy_s: float | None = None
    ) -> None:
        """One copy, which took ``busy_s``, or until now."""
        if self._is_closed or not self._order.is_traced:
            return
        took_s = self.clock.time() - began if busy_s is None else busy_s
        self._held.append((lane, name, began, took_s, nbytes))
        if len(self._held) >= MAX_HELD:
            self._tell_now()
        elif self._timer is None:
            self._timer = self._loop.call_later(TELL_AFTER_S, self._tell_now)

    def close(self) -> None:
        """Tell of what is held, and of nothing more."""
        self._tell_now()
        self._is_closed = True

    def abort(self) -> None:
        """Tell of nothing more."""
        self._held.clear()
        self.close()

    def _tell_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held:
            held, self._held = tuple(self._held), []
            order = self._order
            self._tell(Copies(pipeline=order.pipeline, stage=order.stage, copies=held))
