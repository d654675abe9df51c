"""Many seeds, over several processes: every schedule run, every failing one made short."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dvrt.chaos.judge import Verdict
from dvrt.chaos.schedule import KINDS, Schedule, draw_schedule
from dvrt.chaos.shrink import Shrinker
from dvrt.chaos.traffic import Answer
from dvrt.chaos.virtual_run import right_answers, run_schedule
from dvrt.process_pool import ProcessPool

BLOCK = 25
"""Seeds that one process runs at a time."""
MAX_SHRUNK = 3
"""Of so many failing schedules short ones are looked for, which takes many runs each."""

COMPUTING = ("device", "dtype", "exact", "chunk_tokens", "max_context")
"""The options that say what is computed; all others must not change a token."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A schedule that went wrong, made as short as it could be, and what was wrong then."""

    schedule: Schedule
    faults: tuple[str, ...]


@dataclass(slots=True)
class Tally:
    """The sums over all seeds."""

    n_seeds: int = 0
    n_asked: int = 0
    n_whole: int = 0
    n_lost: int = 0
    n_tokens: int = 0
    recomputed: int = 0
    restored: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    mix: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        self.n_seeds += 1
        self.n_asked += verdict.n_asked
        self.n_whole += verdict.n_whole
        self.n_lost += verdict.n_lost
        self.n_tokens += verdict.n_tokens
        self.recomputed += verdict.recomputed
        self.restored += verdict.restored
        self.injected.update(verdict.injected)
        self.mix.update(verdict.mix)

    def merge(self, other: Tally) -> None:
        for name in ("n_seeds", "n_asked", "n_whole", "n_lost", "n_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.recomputed += other.recomputed
        self.restored += other.restored
        self.injected.update(other.injected)
        self.mix.update(other.mix)
        self.failures.extend(other.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What all seeds have in common; ``options`` are launch options that win over drawn ones."""

    model: Path
    n_layers: int
    kinds: Sequence[str] = KINDS
    options: Mapping[str, Any] = field(default_factory=dict)

    def schedule(self, seed: int) -> Schedule:
        return draw_schedule(seed, kinds=self.kinds, options=self.options, n_layers=self.n_layers)

    def verdict(self, schedule: Schedule) -> Verdict:
        told = {name: self.options[name] for name in COMPUTING if name in self.options}
        return run_schedule(self.model, schedule, _right(self.model, tuple(told.items())))

    def run(self, seeds: Sequence[int], *, shrinks: bool = True) -> Tally:
        """All these seeds, in this process; failing schedules are made short."""
        tally = Tally()
        with _quiet(), _few_to_collect():
            for seed in seeds:
                schedule = self.schedule(seed)
                verdict = self.verdict(schedule)
                tally.add(verdict)
                if not verdict.is_right:
                    is_worth_it = shrinks and len(tally.failures) < MAX_SHRUNK
                    tally.failures.append(self._failure(schedule, verdict, is_worth_it))
        return tally

    def run_on_cores(
        self, seeds: Sequence[int], *, jobs: int | None = None, on_progress: OnProgress
    ) -> Tally:
        """As ``run``, in ``jobs`` processes, by default one a core; interrupted, they end."""
        blocks = [seeds[start : start + BLOCK] for start in range(0, len(seeds), BLOCK)]
        total = Tally()
        n_jobs = min(jobs or os.cpu_count() or 1, len(blocks))
        if n_jobs == 1:
            for block in blocks:
                total.merge(self.run(block))
                on_progress(total.n_seeds, len(seeds))
            return total
        with ProcessPool(n_jobs) as pool:
            for tally in pool.map(self.run, blocks):
                total.merge(tally)
                on_progress(total.n_seeds, len(seeds))
        return total

    def _failure(self, schedule: Schedule, verdict: Verdict, is_worth_it: bool) -> Failure:
        if is_worth_it:
            shrinker = Shrinker(lambda each: not self.verdict(each).is_right)
            schedule = shrinker.shrink(schedule)
            verdict = self.verdict(schedule)
        return Failure(schedule=schedule, faults=verdict.faults)


@cache
def _right(model: Path, options: tuple[tuple[str, Any], ...]) -> dict[int, Answer]:
    """Computed once a process."""
    return right_answers(model, dict(options))


@contextmanager
def _few_to_collect() -> Iterator[None]:
    """Workers that close a stage collect garbage, in one process everybody's; what was there
    before the runs is left out of that."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _quiet() -> Iterator[None]:
    """Faults are logged by whom they meet, as they should be; here they are the point."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
