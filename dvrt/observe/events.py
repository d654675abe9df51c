"""What happened to a cluster, as a bounded list of records that people and tests can read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MAX_RECORDS = 10_000
"""Older records are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """``subject`` (a worker, a request, the cluster) came into ``state`` at ``at_s``, and why.

    ``at_s`` is in seconds of the event loop's clock.
    """

    at_s: float
    subject: str
    state: str
    reason: str = ""


class EventLog:
    """The latest records, oldest first."""

    def __init__(self, max_records: int = MAX_RECORDS) -> None:
        self._records: deque[Record] = deque(maxlen=max_records)

    def add(self, at_s: float, subject: str, state: str, reason: str = "") -> None:
        self._records.append(Record(at_s=at_s, subject=subject, state=state, reason=reason))

    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)
