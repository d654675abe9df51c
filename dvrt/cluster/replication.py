"""How far the copies of logs are behind: in tokens of one sequence.

Knows steps and acknowledgements by their numbers only.
"""

from __future__ import annotations

from collections import Counter, deque

MAX_STEPS = 4096
"""Finished steps that are remembered of one pipeline: the largest lag that is seen exactly."""


class ReplicaLags:
    """A sequence gets at most one token from a step of its microbatch, so the steps of one
    microbatch that are done and not yet acknowledged are the tokens that its copies lack."""

    def __init__(self) -> None:
        self._done: dict[int, deque[tuple[int, int]]] = {}
        self._stored: dict[tuple[int, int], dict[str, int]] = {}

    def finished(self, pipeline: int, step: int, microbatch: int) -> None:
        steps = self._done.get(pipeline)
        if steps is None:
            steps = self._done[pipeline] = deque(maxlen=MAX_STEPS)
        steps.append((step, microbatch))

    def acknowledged(self, pipeline: int, stage: int, holder: str, step: int) -> int:
        """A holder has everything of one stage up to a step; what it had lacked until now."""
        stored = self._stored.setdefault((pipeline, stage), {})
        behind = self._behind(pipeline, stored.get(holder, -1))
        stored[holder] = step
        return behind

    def lag(self, pipeline: int, stage: int) -> int | None:
        """What the best copies of a stage's logs lack now; None where there are none."""
        stored = self._stored.get((pipeline, stage))
        return self._behind(pipeline, max(stored.values())) if stored else None

    def lost(self, holder: str) -> None:
        """A holder is gone, and with it what it kept."""
        for stored in self._stored.values():
            stored.pop(holder, None)

    def forget(self, pipeline: int) -> None:
        """A pipeline is closed."""
        self._done.pop(pipeline, None)
        for key in [key for key in self._stored if key[0] == pipeline]:
            del self._stored[key]

    def _behind(self, pipeline: int, step: int) -> int:
        behind: Counter[int] = Counter()
        for number, microbatch in reversed(self._done.get(pipeline, ())):
            if number <= step:
                break
            behind[microbatch] += 1
        return max(behind.values(), default=0)
