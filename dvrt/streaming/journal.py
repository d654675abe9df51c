"""What streaming did: counters, and a bounded log of events that shows what overlapped what."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Since the start. A copy is one contiguous move between device and host memory."""

    copies_out: int = 0
    copies_in: int = 0
    parcels_sent: int = 0
    parcels_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    late_parcels: int = 0
    corrupted_parcels: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """``kind``: computed, packed, sent, arrived, stored. ``at`` in seconds of the loop's clock."""

    at: float
    kind: str
    stream: str
    step: int
    index: int = -1
    layer: int = -1


@dataclass(slots=True)
class Journal:
    """The latest events, oldest first."""

    limit: int = 4096
    _events: deque[Event] = field(init=False)

    def __post_init__(self) -> None:
        self._events = deque(maxlen=self.limit)

    def record(self, event: Event) -> None:
        self._events.append(event)

    def __iter__(self) -> Iterator[Event]:
        return iter(tuple(self._events))

    def __len__(self) -> int:
        return len(self._events)

    def first(self, matches: Callable[[Event], bool]) -> Event | None:
        return next((event for event in self._events if matches(event)), None)
