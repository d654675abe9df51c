"""Traces are files that Perfetto reads, whatever happened while they were taken."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from dvrt.clock import ManualClock
from dvrt.errors import ConfigError
from dvrt.observe.trace import Tracer


def load(path: Path) -> tuple[list[dict[str, Any]], dict[int, str], dict[int, str]]:
    """Events without metadata, names of processes by pid, names of lanes by tid."""
    events = json.loads(path.read_text())["traceEvents"]
    names = [event for event in events if event["ph"] == "M"]
    processes = {e["pid"]: e["args"]["name"] for e in names if e["name"] == "process_name"}
    lanes = {e["tid"]: e["args"]["name"] for e in names if e["name"] == "thread_name"}
    return [event for event in events if event["ph"] != "M"], processes, lanes


def test_spans(tmp_path: Path) -> None:
    path, clock = tmp_path / "trace.json", ManualClock(100.0)
    with Tracer(path, clock=clock) as tracer:
        clock.advance(1.0)
        with tracer.span("step", process="worker 0", lane="compute", arguments={"rows": 4}):
            clock.advance(0.002)
        tracer.complete("copy", process="worker 0", lane="copies", start_s=100.5, duration_s=0.25)
        tracer.complete("step", process="worker 1", lane="compute", start_s=101, duration_s=1)
    events, processes, lanes = load(path)
    assert [(e["name"], processes[e["pid"]], lanes[e["tid"]]) for e in events] == [
        ("step", "worker 0", "compute"),
        ("copy", "worker 0", "copies"),
        ("step", "worker 1", "compute"),
    ]
    assert [(e["ts"], e["dur"]) for e in events] == [(1e6, 2e3), (5e5, 2.5e5), (1e6, 1e6)]
    assert events[0]["args"] == {"rows": 4}
    assert len({e["tid"] for e in events}) == 3


def test_a_span_that_raises_is_kept(tmp_path: Path) -> None:
    path, clock = tmp_path / "trace.json", ManualClock()
    with Tracer(path, clock=clock) as tracer:
        with pytest.raises(KeyError), tracer.span("step", process="p", lane="l"):
            clock.advance(3)
            raise KeyError
    assert load(path)[0][0]["dur"] == 3e6


def test_instants_and_counters(tmp_path: Path) -> None:
    path, clock = tmp_path / "trace.json", ManualClock()
    with Tracer(path, clock=clock) as tracer:
        clock.advance(2)
        tracer.instant("died", process="worker 1", lane="life", arguments={"signal": 9})
        tracer.counter("rows", process="controller", values={"used": 3})
    (died, rows), _, _ = load(path)
    assert (died["ph"], died["ts"], died["args"]) == ("i", 2e6, {"signal": 9})
    assert (rows["ph"], rows["args"]) == ("C", {"used": 3})


def test_values_that_json_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Tracer(path) as tracer:
        tracer.counter("lag", process="p", values={"now": math.nan, "most": math.inf})
        tracer.instant('na"me\n', process="é\\", lane="\x00", arguments={"text": "\ud800"})
    events, processes, _ = load(path)
    assert events[0]["args"] == {"now": "nan", "most": "inf"}
    assert "é\\" in processes.values()


def test_bounded(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Tracer(path, max_events=3) as tracer:
        for _ in range(10):
            tracer.instant("tick", process="p", lane="l")
    assert len(load(path)[0]) == 3
    assert json.loads(path.read_text())["otherData"] == {"dropped_events": 7}


def test_closed_twice_and_used_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    tracer = Tracer(path)
    tracer.close()
    written = path.read_text()
    tracer.instant("late", process="p", lane="l")
    tracer.close()
    assert path.read_text() == written
    assert tracer.n_dropped == 1


def test_from_several_threads(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    def work(name: str) -> None:
        for i in range(500):
            tracer.instant("tick", process=name, lane=str(i % 5))

    with Tracer(path) as tracer:
        threads = [threading.Thread(target=work, args=(f"worker {i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events, processes, lanes = load(path)
    assert len(events) == 2000
    assert sorted(processes.values()) == [f"worker {i}" for i in range(4)]
    assert len(lanes) == 20


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/trace\.json cannot be written: No such file"):
        Tracer(tmp_path / "nowhere" / "trace.json")
    with pytest.raises(ConfigError, match="Is a directory"):
        Tracer(tmp_path)
