"""What each step took at each stage, as the stages' own clocks have it, from a launch's trace."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

_LANE = re.compile(r"pipeline (\d+) stage (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpan:
    """One step's compute at one stage: the rows that it decoded, and its chunks of prompts.

    ``began_s`` is in seconds since the trace's beginning.
    """

    stage: int
    rows: int
    chunks: int
    seconds: float
    began_s: float = 0.0
    step: int = 0
    microbatch: int = 0

    @property
    def end_s(self) -> float:
        return self.began_s + self.seconds


def read_spans(trace: Path, *, pipeline: int = 0) -> list[StageSpan]:
    """All steps of a pipeline that were not void, from the file that ``--trace`` writes."""
    events = json.loads(trace.read_text())["traceEvents"]
    lanes = {
        (event["pid"], event["tid"]): _LANE.fullmatch(event["args"]["name"])
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name"
    }
    return [
        StageSpan(
            stage=int(lane[2]),
            rows=event["args"]["rows"],
            chunks=event["args"]["chunks"],
            seconds=event["dur"] / 1e6,
            began_s=event["ts"] / 1e6,
            step=event["args"]["step"],
            microbatch=int(event["name"].rpartition(" ")[2]),
        )
        for event in events
        if event["ph"] == "X"
        and (lane := lanes.get((event["pid"], event["tid"])))
        and int(lane[1]) == pipeline
        and "rows" in event["args"]
    ]
