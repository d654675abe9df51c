"""Spans of what happened when, in Chrome's trace format, for Perfetto and chrome://tracing.

A process is whatever should be one group of lanes (a worker, the controller), a lane one row in it
(a slot, a copy stream, a request). Knows nothing of what the spans mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dvrt.clock import Clock, MonotonicClock
from dvrt.errors import ConfigError

MAX_EVENTS = 1_000_000
"""Events kept by one tracer; later ones are counted and dropped."""

Arguments = Mapping[str, str | int | float | bool | None]


class Tracer:
    """Collects events in memory and writes them to ``path`` when closed.

    Times are seconds of the clock, made relative to the tracer's beginning. Adding an event takes
    about a microsecond, from any thread. Opening raises ConfigError where ``path`` cannot be
    written, and replaces a file that is there.
    """

    def __init__(
        self, path: Path, *, clock: Clock | None = None, max_events: int = MAX_EVENTS
    ) -> None:
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"trace {path} cannot be written: {error.strerror}") from error
        self._clock = clock or MonotonicClock()
        self._start = self._clock.time()
        self._max_events = max_events
        self._events: list[dict[str, Any]] = []
        self._pids: dict[str, int] = {}
        self._lanes: dict[tuple[str, str], tuple[int, int]] = {}
        self._lock = threading.Lock()
        self.n_dropped = 0

    def now(self) -> float:
        """Seconds of this tracer's clock, as ``complete`` takes them."""
        return self._clock.time()

    @contextlib.contextmanager
    def span(
        self, name: str, *, process: str, lane: str, arguments: Arguments | None = None
    ) -> Iterator[None]:
        """The time inside the ``with`` block, also when it raises."""
        start = self.now()
        try:
            yield
        finally:
            self.complete(
                name,
                process=process,
                lane=lane,
                start_s=start,
                duration_s=self.now() - start,
                arguments=arguments,
            )

    def complete(
        self,
        name: str,
        *,
        process: str,
        lane: str,
        start_s: float,
        duration_s: float,
        arguments: Arguments | None = None,
    ) -> None:
        """A span that is over."""
        timing = {"ts": self._microseconds(start_s), "dur": round(duration_s * 1e6, 3)}
        self._add("X", name, process, lane, timing, arguments)

    def instant(
        self, name: str, *, process: str, lane: str, arguments: Arguments | None = None
    ) -> None:
        """Something that happened now."""
        timing: dict[str, Any] = {"ts": self._microseconds(self.now()), "s": "t"}
        self._add("i", name, process, lane, timing, arguments)

    def counter(self, name: str, *, process: str, values: Mapping[str, float]) -> None:
        """Values drawn as a curve over time."""
        self._add("C", name, process, name, {"ts": self._microseconds(self.now())}, values)

    def close(self) -> None:
        """Write the file; blocks. Closing twice is harmless, later events are dropped."""
        with self._lock:
            if self._file.closed:
                return
            with self._file:
                json.dump(self._document(), self._file, separators=(",", ":"))

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _microseconds(self, moment_s: float) -> float:
        return round((moment_s - self._start) * 1e6, 3)

    def _add(
        self,
        phase: str,
        name: str,
        process: str,
        lane: str,
        timing: Mapping[str, Any],
        arguments: Arguments | None,
    ) -> None:
        with self._lock:
            if self._file.closed or len(self._events) >= self._max_events:
                self.n_dropped += 1
                return
            pid, tid = self._lane(process, lane)
            event: dict[str, Any] = {"ph": phase, "name": name, "pid": pid, "tid": tid, **timing}
            if arguments:
                event["args"] = {key: _presentable(value) for key, value in arguments.items()}
            self._events.append(event)

    def _lane(self, process: str, lane: str) -> tuple[int, int]:
        known = self._lanes.get((process, lane))
        if known is None:
            pid = self._pids.setdefault(process, len(self._pids) + 1)
            known = self._lanes[process, lane] = (pid, len(self._lanes) + 1)
        return known

    def _document(self) -> dict[str, Any]:
        return {
            "traceEvents": [*self._names(), *self._events],
            "displayTimeUnit": "ms",
            "otherData": {"dropped_events": self.n_dropped},
        }

    def _names(self) -> Iterator[dict[str, Any]]:
        for process, pid in self._pids.items():
            yield _metadata("process_name", pid, 0, process)
        for (_, lane), (pid, tid) in self._lanes.items():
            yield _metadata("thread_name", pid, tid, lane)


def _presentable(value: object) -> object:
    """JSON knows no infinities, and one of them would make the whole file unreadable."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _metadata(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
