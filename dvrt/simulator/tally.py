"""What a simulation counts: latencies, waits by place, busy time of stages, events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dvrt.control.events import Place
from dvrt.simulator.sketch import Sketch, SketchState
from dvrt.wire import message

LATENCIES = ("ttft_s", "tpot_s", "normalized_s", "latency_s")
QUANTILES = (0.5, 0.95, 0.99)


class Ended(NamedTuple):
    """A request that was served."""

    arrival_s: float
    first_s: float
    end_s: float
    prompt: int
    output: int


@message("simulator.tally")
class TallyState:
    """A tally as it travels between processes."""

    sketches: dict[str, SketchState]
    counts: dict[str, float]
    busy_s: dict[str, float]


class Tally:
    """Of one cluster or of many together.

    ``counts`` are sums; ``first_s`` and ``last_s`` when the first request came and the last one
    ended. ``busy_s`` has the seconds of compute of each stage, by a name such as ``tokens 2``.
    """

    def __init__(self) -> None:
        self.sketches = {name: Sketch() for name in LATENCIES}
        self.sketches |= {f"wait_{place}_s": Sketch() for place in Place}
        self.counts: dict[str, float] = {}
        self.busy_s: dict[str, float] = {}
        self.first_s, self.last_s = math.inf, 0.0

    def arrived(self, now: float) -> None:
        self.first_s = min(self.first_s, now)

    def waited(self, place: Place, seconds: float) -> None:
        self.sketches[f"wait_{place}_s"].add(seconds)

    def ended(self, request: Ended) -> None:
        latency_s = request.end_s - request.arrival_s
        sketches = self.sketches
        sketches["ttft_s"].add(request.first_s - request.arrival_s)
        sketches["latency_s"].add(latency_s)
        sketches["normalized_s"].add(latency_s / request.output)
        if request.output > 1:
            sketches["tpot_s"].add((request.end_s - request.first_s) / (request.output - 1))
        self.count("requests", 1)
        self.count("prompt_tokens", request.prompt)
        self.count("output_tokens", request.output)
        self.last_s = max(self.last_s, request.end_s)

    def count(self, name: str, by: float) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def busy(self, stage: str, seconds: float) -> None:
        self.busy_s[stage] = self.busy_s.get(stage, 0.0) + seconds

    def merge(self, other: Tally) -> None:
        for name, sketch in other.sketches.items():
            self.sketches[name].merge(sketch)
        for name, count in other.counts.items():
            self.count(name, count)
        for stage, seconds in other.busy_s.items():
            self.busy(stage, seconds)
        self.first_s = min(self.first_s, other.first_s)
        self.last_s = max(self.last_s, other.last_s)

    @property
    def makespan_s(self) -> float:
        return max(0.0, self.last_s - self.first_s) if self.counts.get("requests") else 0.0

    def per_second(self, name: str) -> float:
        """A count over the time from the first arrival to the last end."""
        span_s = self.makespan_s
        return self.counts.get(name, 0) / span_s if span_s else 0.0

    def quantiles(self) -> Mapping[str, Any]:
        """Per latency and wait: count, mean, median, 95th and 99th percentile, largest."""
        return {name: _described(sketch) for name, sketch in self.sketches.items()}

    def state(self) -> TallyState:
        spans = {"first_s": self.first_s, "last_s": self.last_s}
        return TallyState(
            sketches={name: sketch.state() for name, sketch in self.sketches.items()},
            counts={name: float(count) for name, count in (self.counts | spans).items()},
            busy_s=dict(self.busy_s),
        )

    @classmethod
    def from_state(cls, state: TallyState) -> Tally:
        tally = cls()
        tally.sketches = {name: Sketch.from_state(each) for name, each in state.sketches.items()}
        tally.counts, tally.busy_s = dict(state.counts), dict(state.busy_s)
        tally.first_s = tally.counts.pop("first_s")
        tally.last_s = tally.counts.pop("last_s")
        return tally


def _described(sketch: Sketch) -> Mapping[str, float | int | None]:
    if not sketch.n_values:
        return {"count": 0} | dict.fromkeys(("mean", "p50", "p95", "p99", "max"))
    marks = {f"p{round(100 * share)}": sketch.quantile(share) for share in QUANTILES}
    return {"count": sketch.n_values, "mean": sketch.mean, **marks, "max": sketch.largest}
