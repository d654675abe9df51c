"""How far the copies of logs are behind, in tokens of one sequence, and which there are none of.

Knows steps and acknowledgements by their numbers only.
"""

from __future__ import annotations

from collections import Counter, deque

from dvrt.protocol.messages import Replicated

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


class ReplicaRefusals:
    """Logs that holders have no room for, by stage and holder: in what each was sent last, and the
    most so far. What was refused has no copy, and so no lag."""

    def __init__(self) -> None:
        self._now: dict[tuple[int, int, str], int] = {}
        self._most: dict[tuple[int, int, str], int] = {}

    @property
    def n_now(self) -> int:
        return sum(self._now.values())

    def told(self, message: Replicated) -> int:
        """A holder has taken what it was sent but for so many logs; the most before.

        Each time other logs are sent, so only a new highest number is worth telling.
        """
        key = (message.pipeline, message.stage, message.holder)
        most = self._most.get(key, 0)
        self._now[key] = message.refused
        self._most[key] = max(most, message.refused)
        return most

    def lost(self, holder: str) -> None:
        """A holder is gone."""
        self._drop([key for key in self._now if key[2] == holder])

    def forget(self, pipeline: int) -> None:
        """A pipeline is closed."""
        self._drop([key for key in self._now if key[0] == pipeline])

    def _drop(self, keys: list[tuple[int, int, str]]) -> None:
        for key in keys:
            del self._now[key], self._most[key]
