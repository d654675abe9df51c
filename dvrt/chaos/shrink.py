"""Makes a failing schedule short: fewer faults, fewer requests, clients that only listen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from dvrt.chaos.schedule import Ask, Schedule

T = TypeVar("T")
Fails = Callable[[Schedule], bool]
MAX_TRIES = 200


class Shrinker:
    """Looks for a smaller schedule that still fails, in at most ``max_tries`` runs."""

    def __init__(self, fails: Fails, max_tries: int = MAX_TRIES) -> None:
        self._fails = fails
        self._left = max_tries

    def shrink(self, schedule: Schedule) -> Schedule:
        """A schedule of which nothing more can be left out; the given one must fail."""
        smaller: Schedule | None = schedule
        while smaller is not None:
            schedule = smaller
            smaller = next((each for each in _smaller(schedule) if self._holds(each)), None)
        return schedule

    def _holds(self, schedule: Schedule) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return self._fails(schedule)


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Smaller schedules, those that leave out most first."""
    for actions in _without_parts(schedule.actions):
        yield replace(schedule, actions=actions)
    for asks in _without_parts(schedule.asks):
        if asks:
            yield replace(schedule, asks=asks)
    for index, asked in enumerate(schedule.asks):
        if not asked.is_patient:
            patient = Ask(number=asked.number, at_s=asked.at_s)
            others = schedule.asks
            yield replace(schedule, asks=(*others[:index], patient, *others[index + 1 :]))
    for name in ("swap", "spares", "replica_memory", "persist"):
        if schedule.options.get(name):
            kept = {k: v for k, v in schedule.options.items() if not k.startswith(name)}
            yield replace(schedule, options=kept)


def _without_parts(items: Sequence[T]) -> Iterator[tuple[T, ...]]:
    """Without one half, one quarter and so on, down to without one."""
    size = len(items) // 2
    while size:
        for start in range(0, len(items), size):
            yield (*items[:start], *items[start + size :])
        size //= 2
    if len(items) == 1:
        yield ()
