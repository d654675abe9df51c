"""How often each place has lost its worker lately, and when that is too often to go on mending."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dvrt.clock import Clock
from dvrt.cluster.topology import Seat

WINDOW_S = 60.0
"""Losses of one place within this time count together."""

Place = tuple[int, int] | None
"""A stage by its pipeline; None for all workers that wait."""


class Deaths:
    """Losses by place, whichever worker had it."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit, self._clock = limit, clock
        self._times: dict[Place, deque[float]] = {}

    def note(self, seats: Sequence[Seat]) -> None:
        """A worker with these stages is lost, or one that waited."""
        now = self._clock.time()
        for place in _places(seats):
            times = self._times.setdefault(place, deque())
            times.append(now)
            while times[0] < now - WINDOW_S:
                times.popleft()

    def verdict(self, seats: Sequence[Seat]) -> str:
        """Why the latest loss of these is not mended; empty if it is."""
        n = max([len(self._times.get(place, ())) for place in _places(seats)])
        if n <= self._limit:
            return ""
        return f"it was loss number {n} within {WINDOW_S:g} s; max_deaths is {self._limit}"


def _places(seats: Sequence[Seat]) -> list[Place]:
    return [seat.key for seat in seats] or [None]
