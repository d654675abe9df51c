"""The public simulators' event loop, one stage visit at a time.

A first-in first-out queue (not one ordered by time) of microbatches; each stage is a serial
server. Slow and plain: it makes the traces, and ``compat_laps`` must equal it bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dvrt.simulator.compat_work import PipelineWork


@dataclass(frozen=True, slots=True)
class Visit:
    """A microbatch on a stage; ``token`` is None for the prompt, else counts from 0."""

    stage: int
    microbatch: int
    token: int | None
    start_us: float
    duration_us: float


@dataclass(frozen=True, slots=True)
class PipelineOutcome:
    """When each microbatch left the last stage, and how often one left others behind it."""

    ends_us: list[float]
    early_stops: int


@dataclass(slots=True)
class _Entry:
    microbatch: int
    start_us: float
    remaining: int
    is_prompt: bool
    stage: int = 0


def run_steps(
    work: PipelineWork, on_visit: Callable[[Visit], None] | None = None
) -> PipelineOutcome:
    """Run the pipeline to the end, calling ``on_visit`` for each visit in the order processed."""
    return _Steps(work).run(on_visit)


class _Steps:
    def __init__(self, work: PipelineWork) -> None:
        self._work = work
        self._free_us = [0.0] * work.stages
        self._ends_us = [0.0] * len(work.lengths)
        self._early_stops = 0
        self._queue = deque(self._entry(b) for b in range(work.stages))
        self._next = work.stages

    def run(self, on_visit: Callable[[Visit], None] | None) -> PipelineOutcome:
        while self._queue:
            entry = self._queue.popleft()
            visit = self._visit(entry)
            if on_visit is not None:
                on_visit(visit)
            self._advance(entry)
        return PipelineOutcome(self._ends_us, self._early_stops)

    def _entry(self, microbatch: int) -> _Entry:
        work = self._work
        has_prompt = work.prompt_us is not None
        length = work.lengths[microbatch]
        return _Entry(microbatch, work.entries_us[microbatch], length, has_prompt)

    def _visit(self, entry: _Entry) -> Visit:
        work = self._work
        start_us = max(entry.start_us, self._free_us[entry.stage])
        duration_us = work.token_us
        token: int | None = work.lengths[entry.microbatch] - entry.remaining
        if entry.is_prompt and work.prompt_us is not None:
            duration_us, token = work.prompt_us, None
        entry.start_us = self._free_us[entry.stage] = start_us + duration_us
        return Visit(entry.stage, entry.microbatch, token, start_us, duration_us)

    def _advance(self, entry: _Entry) -> None:
        if entry.stage + 1 < self._work.stages:
            entry.stage += 1
        elif entry.is_prompt:
            entry.stage, entry.is_prompt = 0, False
        elif entry.remaining > 1:
            entry.stage, entry.remaining = 0, entry.remaining - 1
        else:
            self._finish(entry)
            return
        self._queue.append(entry)

    def _finish(self, entry: _Entry) -> None:
        self._ends_us[entry.microbatch] = entry.start_us
        self._early_stops += any(other.remaining > 2 for other in self._queue)
        if self._next < len(self._work.lengths):
            # The newcomer waits for the first stage, not for the one whose place it takes.
            self._queue.append(self._entry(self._next))
            self._next += 1
