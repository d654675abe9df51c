"""Runs a sweep's configurations over the cores, and remembers what is done.

A partial file beside the output holds one line a finished configuration, so that an interrupted
sweep goes on where it stopped. It is tied to the sweep's input by a digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from dvrt.simulator.compat_sweep import (
    RunOutcome,
    SweepInput,
    SweepRun,
    enumerate_runs,
    execute,
)
from dvrt.simulator.compat_worker import SweepWorker

OnProgress = Callable[[int, int], None]


class PartialSweep:
    """The outcomes so far, in a file of JSON lines; a torn last line is ignored."""

    def __init__(self, path: Path, given: SweepInput) -> None:
        self._path = path
        self._digest = hashlib.sha256(repr(asdict(given)).encode()).hexdigest()
        self.outcomes = self._read()

    def _read(self) -> dict[str, RunOutcome]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        if not lines or lines[0] != self._digest:
            self._path.write_text(self._digest + "\n")
            return {}
        return dict(_parse_lines(lines[1:]))

    def add(self, run: SweepRun, outcome: RunOutcome) -> None:
        line = json.dumps([run.key, outcome.makespan_s, outcome.visits])
        with self._path.open("a") as file:
            file.write("\n" + line + "\n")
        self.outcomes[run.key] = outcome

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _parse_lines(lines: list[str]) -> Iterator[tuple[str, RunOutcome]]:
    for line in lines:
        try:
            key, makespan_s, visits = json.loads(line)
        except ValueError:
            continue
        yield key, RunOutcome(makespan_s, visits)


def run_sweep(
    given: SweepInput,
    *,
    workers: int | None = None,
    partial: PartialSweep | None = None,
    on_progress: OnProgress | None = None,
) -> dict[SweepRun, RunOutcome]:
    """Every configuration's outcome, in the order of ``enumerate_runs``.

    ``workers`` processes (default: one a core; 1 runs in this one); an interruption cancels what
    has not started, ends them and is raised. Whatever finished is in ``partial`` by then.
    """
    runs = list(enumerate_runs(given))
    known = dict(partial.outcomes) if partial else {}
    waiting = [run for run in runs if run.key not in known]
    done = len(runs) - len(waiting)
    for run, outcome in _execute_all(given, waiting, workers or os.cpu_count() or 1):
        known[run.key] = outcome
        done += 1
        if partial:
            partial.add(run, outcome)
        if on_progress:
            on_progress(done, len(runs))
    return {run: known[run.key] for run in runs}


def _execute_all(
    given: SweepInput, runs: list[SweepRun], workers: int
) -> Iterator[tuple[SweepRun, RunOutcome]]:
    longest_first = sorted(runs, key=lambda run: run.stages / run.batch, reverse=True)
    if workers == 1 or len(runs) < 2:
        yield from ((run, execute(given, run)) for run in longest_first)
        return
    with ExitStack() as stack:
        processes = [
            stack.enter_context(SweepWorker(given)) for _ in range(min(workers, len(runs)))
        ]
        idle: SimpleQueue[SweepWorker] = SimpleQueue()
        for process in processes:
            idle.put(process)
        pool = ThreadPoolExecutor(len(processes))
        try:
            futures = {pool.submit(_execute_on_idle, idle, run): run for run in longest_first}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for process in processes:
                process.kill()
            pool.shutdown(cancel_futures=True)


def _execute_on_idle(idle: SimpleQueue[SweepWorker], run: SweepRun) -> RunOutcome:
    process = idle.get()
    try:
        return process.execute(run)
    finally:
        idle.put(process)


def total_visits(outcomes: Mapping[SweepRun, RunOutcome]) -> int:
    """Events simulated in all."""
    return sum(outcome.visits for outcome in outcomes.values())
