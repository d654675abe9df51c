"""What people see of recoveries: each lost stage's way back, as events, metrics and spans."""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.clock import Clock
from dvrt.cluster.topology import Seat
from dvrt.control.steps import StepDone
from dvrt.observe.events import EventLog
from dvrt.observe.metrics import Metrics
from dvrt.observe.trace import Tracer

Key = tuple[int, int]


@dataclass(slots=True)
class _Mending:
    """One lost stage: when each part of its recovery."""

    worker: str
    part: str
    since: float
    n_wanted: int = 0
    n_restored: int = 0


class Mendings:
    """Follows each lost stage: replace (until it can be used), restore (until its logs are back),
    recompute (until its pipeline brings forth a token again)."""

    def __init__(
        self, events: EventLog, metrics: Metrics, tracer: Tracer | None, clock: Clock
    ) -> None:
        self._events, self._metrics = events, metrics
        self._tracer, self._clock = tracer, clock
        self._open: dict[Key, _Mending] = {}

    def stage_lost(self, seat: Seat, worker: str) -> None:
        """The scheduler is told of this loss; a stage lost again begins again."""
        self._end_part(seat.key)
        self._open[seat.key] = _Mending(worker, "replace", self._clock.time())
        self._say(seat.key, "lost", f"with worker {worker}")

    def replaced(self, seat: Seat) -> None:
        self._say(seat.key, "loaded", f"by worker {seat.owner}")

    def returned(self, seat: Seat, *, is_restoring: bool) -> None:
        """The stage can be used; without logs to restore it only remains to go on."""
        self._begin(seat.key, "restore" if is_restoring else "recompute")
        self._say(seat.key, "ready", f"on worker {seat.owner}")

    def restored(self, seat: Seat, n_wanted: int, n_restored: int) -> None:
        """One of its logs came back this far."""
        mending = self._open.get(seat.key)
        if mending is not None:
            mending.n_wanted += n_wanted
            mending.n_restored += n_restored

    def all_restored(self, seat: Seat) -> None:
        """No more comes back."""
        mending = self._open.get(seat.key)
        if mending is not None:
            self._begin(seat.key, "recompute")
            text = f"{mending.n_restored} of {mending.n_wanted} positions came from copies"
            self._say(seat.key, "restored", text)

    def landed(self, done: StepDone) -> None:
        """A step is back; the first that draws a token ends its pipeline's recoveries."""
        if not self._open or not (done.decoded or done.firsts):
            return
        for key in [key for key in self._open if key[0] == done.pipeline]:
            if self._open[key].part == "recompute":
                self._end_part(key)
                del self._open[key]
                self._say(key, "resumed", "tokens come again")

    def closed(self, pipeline: int) -> None:
        for key in [key for key in self._open if key[0] == pipeline]:
            del self._open[key]

    def _begin(self, key: Key, part: str) -> None:
        self._end_part(key)
        if key in self._open:
            mending = self._open[key]
            mending.part, mending.since = part, self._clock.time()

    def _end_part(self, key: Key) -> None:
        mending = self._open.get(key)
        if mending is None:
            return
        seconds = self._clock.time() - mending.since
        self._metrics.recovered(mending.part, seconds)
        if self._tracer is not None:
            self._tracer.complete(
                mending.part,
                process="recoveries",
                lane=_name(key),
                start_s=mending.since,
                duration_s=seconds,
                arguments={"lost": mending.worker},
            )

    def _say(self, key: Key, state: str, reason: str) -> None:
        self._events.add(self._clock.time(), _name(key), state, reason)


def _name(key: Key) -> str:
    return f"pipeline {key[0]} stage {key[1]}"
