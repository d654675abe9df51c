"""The public simulators' two deployments: a colocated pipeline, and prompts apart from tokens.

Their cost model on purpose: the network is free, token machines take any number of waiting
prompts, a newcomer enters when the first stage is free even if its predecessor is still on the
last one, and the cache time of the disaggregated one delays without occupying anybody.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dvrt.errors import ConfigError
from dvrt.simulator.compat_laps import run_laps
from dvrt.simulator.compat_steps import PipelineOutcome, Visit, run_steps
from dvrt.simulator.compat_work import PipelineWork, arrivals_us, check_time

OnVisit = Callable[[Visit], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompatResult:
    """What the public simulators print; ``latencies_s`` are seconds per generated token.

    ``visits`` counts the events simulated. The disaggregated simulator counts no early stops.
    """

    makespan_s: float
    latencies_s: tuple[float, ...]
    early_stops: int
    visits: int

    @property
    def microbatches_per_s(self) -> float:
        return len(self.latencies_s) / self.makespan_s if self.makespan_s else float("inf")

    @property
    def median_latency_s(self) -> float:
        return statistics.median(self.latencies_s)

    def lines(self) -> tuple[str, ...]:
        """The printed summary: latency per token, early stops, total time and rate."""
        worst, best = max(self.latencies_s), min(self.latencies_s)
        return (
            f"latency per token: median {self.median_latency_s} s, max {worst} s, min {best} s",
            f"early stops: {self.early_stops}",
            f"total {self.makespan_s} s, {self.microbatches_per_s} microbatches/s",
        )


def simulate_colocated(
    lengths: Sequence[int],
    *,
    machines: int,
    prompt_time_ms: float,
    token_time_ms: float,
    rps: float = 0.0,
    on_visit: OnVisit | None = None,
) -> CompatResult:
    """The baseline: every stage computes prompts and tokens of one pipeline of ``machines``.

    Times are of one microbatch on one stage. The first ``machines`` microbatches start one prompt
    time apart whatever their arrival. With ``on_visit`` it runs visit by visit, else in laps; the
    result is the same. Raises ConfigError for times, rates and counts that cannot be.
    """
    _check_machines(machines=machines)
    prompt_us, token_us = prompt_time_ms * 1000, token_time_ms * 1000
    check_time("prompt_time", prompt_us)
    arrivals = arrivals_us(len(lengths), rps, machines)
    entries = [i * prompt_us for i in range(machines)] + arrivals[machines:]
    work = PipelineWork(
        stages=machines,
        lengths=lengths,
        entries_us=entries,
        prompt_us=prompt_us,
        token_us=token_us,
    )
    outcome = _run(work, on_visit)
    return _result(lengths, arrivals, outcome, early_stops=outcome.early_stops, visits=work.visits)


def simulate_disaggregated(
    lengths: Sequence[int],
    *,
    prompt_machines: int,
    token_machines: int,
    prompt_time_ms: float,
    token_time_ms: float,
    cache_time_ms: float = 1.0,
    rps: float = 0.0,
    on_visit: OnVisit | None = None,
) -> CompatResult:
    """Prompts on one pipeline, tokens on another; times are per stage of each.

    Raises ConfigError for times, rates and counts that cannot be.
    """
    _check_machines(prompt_machines=prompt_machines, token_machines=token_machines)
    prompt_us, cache_us = prompt_time_ms * 1000, cache_time_ms * 1000
    check_time("prompt_time", prompt_us)
    check_time("cache_time", cache_us)
    arrivals = arrivals_us(len(lengths), rps, prompt_machines + token_machines)
    starts = prompt_starts_us(arrivals, prompt_us)
    work = PipelineWork(
        stages=token_machines,
        lengths=lengths,
        entries_us=[start + prompt_machines * (prompt_us + cache_us) for start in starts],
        prompt_us=None,
        token_us=token_time_ms * 1000,
    )
    if on_visit is not None:
        _show_prompts(starts, prompt_machines, prompt_us, cache_us, on_visit)
    outcome = _run(work, on_visit)
    visits = work.visits + prompt_machines * len(lengths)
    return _result(lengths, arrivals, outcome, early_stops=0, visits=visits)


def prompt_starts_us(arrivals: Sequence[float], prompt_us: float) -> list[float]:
    """When each prompt enters the prompt pipeline: in order, one prompt time apart at least."""
    starts = []
    free_us = 0.0
    for arrival in arrivals:
        start = max(arrival, free_us)
        starts.append(start)
        free_us = start + prompt_us
    return starts


def _show_prompts(
    starts: Sequence[float], machines: int, prompt_us: float, cache_us: float, on_visit: OnVisit
) -> None:
    """Report prompt visits at stages -Dp .. -1, before the token stages 0 .. Dt-1."""
    for microbatch, start in enumerate(starts):
        for stage in range(machines):
            at = start + stage * (prompt_us + cache_us)
            on_visit(Visit(stage - machines, microbatch, None, at, prompt_us))


def _run(work: PipelineWork, on_visit: OnVisit | None) -> PipelineOutcome:
    return run_laps(work) if on_visit is None else run_steps(work, on_visit)


def _result(
    lengths: Sequence[int],
    arrivals: Sequence[float],
    outcome: PipelineOutcome,
    *,
    early_stops: int,
    visits: int,
) -> CompatResult:
    durations = ((end - at) / 1000000 for end, at in zip(outcome.ends_us, arrivals, strict=True))
    return CompatResult(
        makespan_s=max(outcome.ends_us) / 1000000,
        latencies_s=tuple(d / n for d, n in zip(durations, lengths, strict=True)),
        early_stops=early_stops,
        visits=visits,
    )


def _check_machines(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} is {count}; at least one machine is needed")
