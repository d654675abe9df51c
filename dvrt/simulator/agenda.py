"""What is to happen later in a simulated cluster, in order of time, then of being put down."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

Action = Callable[[], None]


class Agenda:
    """A queue of actions by time."""

    __slots__ = ("_heap", "_number")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._number = 0

    @property
    def next_s(self) -> float:
        """When the first one is due; infinity if there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def put(self, at_s: float, action: Action) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at_s, self._number, action))

    def take(self) -> tuple[float, Action]:
        at_s, _, action = heapq.heappop(self._heap)
        return at_s, action
