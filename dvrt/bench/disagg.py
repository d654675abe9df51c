"""``bench disagg``: prompts apart from tokens over one pipeline for both, by what rate each keeps.

The paper's Fig. 8 on the real runtime, with null devices under virtual time, beside a plain model.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvrt.bench.common import Measured
from dvrt.bench.disagg_virtual import Seen, as_launched, middle, play
from dvrt.planner.profile import open_profile
from dvrt.simulator.arrivals import Arrival, arrivals
from dvrt.simulator.cluster import Cluster
from dvrt.simulator.deployment import Deployment, LinkFigures
from dvrt.simulator.disagg_case import (
    CASES,
    DisaggregationCase,
    case_load,
    chunked,
    colocated,
    disaggregated,
    scaled,
)
from dvrt.simulator.plain import plain_latencies
from dvrt.simulator.rates import SLACK, Latencies, find_highest_rate, simulated_latencies
from dvrt.simulator.tally import Tally

PAPER = {"opt66b_4": 1.88, "bloom176b_7": 2.0}
CHUNK = 64
"""The runtime's default; two of them go beside a step's tokens."""
N_QUIET, QUIET_S = 9, 1000.0
CHANGES = {"prompts": (0.75, 1.25), "tokens": (0.75, 1.25)}
SIDES: Mapping[str, Callable[[DisaggregationCase], Deployment]] = {
    "disaggregated": disaggregated,
    "colocated": colocated,
    "chunked": chunked,
}
PREDICTED = ("disaggregated", "colocated")
"""What the plain model knows: it computes prompts whole."""
MAX_ROUNDS = 12
TRANSFER_LOADS = {"alone": 0.01, "at_three_quarters": 0.75}
"""Shares of the highest rate on the profile's network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """``apart`` are the factors of the first rates tried; then on, to within ``within``."""

    count: int
    apart: tuple[float, ...]
    within: float


FULL = Effort(count=500, apart=(0.98, 1.02), within=1.045)
QUICK = Effort(count=120, apart=(0.95, 1.05), within=1.11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Highest rates of one deployment, by the runtime and by the models."""

    rate_per_s: float
    unloaded_s: float
    places: Mapping[str, float]
    simulated_per_s: float
    plain_per_s: float | None

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rate_per_s": self.rate_per_s,
            "unloaded_s_per_token": self.unloaded_s,
            "simulated_rate_per_s": self.simulated_per_s,
            "mean_s_in": dict(self.places),
        }
        if self.plain_per_s is not None:
            found["plain_rate_per_s"] = self.plain_per_s
        return found


def measure(*, quick: bool) -> Measured:
    """All figures. ``quick`` has fewer requests, a coarser search, and OPT-66B alone."""
    effort = QUICK if quick else FULL
    names = list(CASES)[:1] if quick else list(CASES)
    results: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    with _pools(names) as (runs, searches, folder):
        bench = _Bench(runs, folder, effort)
        jobs = {
            (name, side): searches.submit(bench.side, CASES[name], side)
            for side in SIDES
            for name in reversed(names)
        }
        changed = {name: runs.submit(_sensitivity, CASES[name], effort.count) for name in names}
        sent = {name: runs.submit(_transfer, CASES[name], effort.count) for name in names}
        for name in names:
            sides = {side: jobs[name, side].result() for side in SIDES}
            ratios |= _ratios(name, sides)
            results[name] = _results(name, sides, changed[name].result())
            results[name]["transfer"] = sent[name].result()
    return Measured(results=results, ratios=ratios, notes=_notes(effort))


class _Bench:
    """Searches on threads of this process, runs in processes of their own."""

    def __init__(self, runs: Executor, folder: Path, effort: Effort) -> None:
        self._runs, self._folder, self._effort = runs, folder, effort

    def side(self, case: DisaggregationCase, name: str) -> Side:
        """One deployment's highest rates. The simulator's is where the runtime's search begins."""
        deployment, count = _launched(case, name), self._effort.count
        model = self._folder / str(case.machines)
        plain = None
        if name in PREDICTED:
            plain = self._runs.submit(model_rate, deployment, count, plain_latencies)
        guess = self._runs.submit(model_rate, deployment, count, simulated_latencies).result()
        unloaded = self._runs.submit(play, model, deployment, quiet_requests(count)).result()

        def seen(rates: Sequence[float]) -> list[Seen]:
            loads = [case_requests(rate, count) for rate in rates]
            return list(
                self._runs.map(play, [model] * len(loads), [deployment] * len(loads), loads)
            )

        rate, near = find_crossing(seen, guess, SLACK * unloaded.median_s, self._effort)
        return Side(
            rate_per_s=rate,
            unloaded_s=unloaded.median_s,
            places=near.places,
            simulated_per_s=guess,
            plain_per_s=plain.result() if plain is not None else None,
        )


def find_crossing(
    seen: Callable[[Sequence[float]], list[Seen]], guess: float, limit_s: float, effort: Effort
) -> tuple[float, Seen]:
    """The rate at which the median reaches ``limit_s``, and what was seen at the rate below it.

    Between two rates that lie close together, by a straight line. Raises RuntimeError when no
    such rates are found.
    """
    known: dict[float, Seen] = {}
    rates = [guess * factor for factor in effort.apart]
    for _ in range(MAX_ROUNDS):
        known.update(zip(rates, seen(rates), strict=True))
        above = min((r for r, it in known.items() if it.median_s > limit_s), default=None)
        below = max((r for r in known if above is None or r < above), default=None)
        if above is None:
            rates = [max(known) * 1.1, max(known) * 1.2]
        elif below is None:
            rates = [min(known) * 0.8, min(known) * 0.9]
        else:
            low_s, high_s = known[below].median_s, known[above].median_s
            rate = below + (above - below) * (limit_s - low_s) / (high_s - low_s)
            if above <= below * effort.within:
                return rate, known[below]
            rates = [rate * 0.99, rate * 1.01]
    raise RuntimeError(f"no crossing of {limit_s:g} s near {guess:g} requests a second")


def model_rate(deployment: Deployment, count: int, latencies: Latencies) -> float:
    """The highest rate by a model, measured as the runtime's."""

    def median_s(requests: Sequence[Arrival]) -> float:
        return statistics.median(middle(latencies(deployment, requests)))

    unloaded_s = median_s(quiet_requests(count))
    found = find_highest_rate(lambda rate: median_s(case_requests(rate, count)), unloaded_s)
    return found.rate_per_s


def case_requests(rate_per_s: float, count: int) -> list[Arrival]:
    """The same requests at every rate: only the gaps between them change."""
    return list(arrivals(case_load(rate_per_s, count=count)))


def quiet_requests(count: int) -> list[Arrival]:
    """A few that stand for all of them, by length of output, one long after the other."""
    ordered = sorted(case_requests(1.0, count), key=lambda each: each.output)
    step = len(ordered) / N_QUIET
    chosen = (ordered[int((i + 0.5) * step)] for i in range(N_QUIET))
    return [each._replace(at_s=i * QUIET_S) for i, each in enumerate(chosen)]


def _launched(case: DisaggregationCase, side: str) -> Deployment:
    deployment = as_launched(SIDES[side](case))
    if side != "chunked":
        return deployment
    return replace(deployment, tokens=replace(deployment.tokens, chunk_tokens=CHUNK))


def _sensitivity(case: DisaggregationCase, count: int) -> dict[str, float]:
    """The gain that the plain model predicts when step times are others."""
    gains = {}
    for what, factors in CHANGES.items():
        for factor in factors:
            split, whole = (
                model_rate(scaled(_launched(case, side), **{what: factor}), count, plain_latencies)
                for side in PREDICTED
            )
            gains[f"{what}_x{factor:g}"] = split / whole
    return gains


def _transfer(case: DisaggregationCase, count: int) -> dict[str, float]:
    """The models on the profile's network: the highest rate, and how long a log is waited for.

    In virtual time the runtime's own links cost nothing.
    """
    network = open_profile(case.profile).machine.network
    deployment = replace(_launched(case, "disaggregated"), links=LinkFigures(network=network))
    rate = model_rate(deployment, count, plain_latencies)
    found = {"network_bytes_per_s": network, "plain_rate_per_s": rate}
    for load, share in TRANSFER_LOADS.items():
        waited_s, link_s = _link_waits(deployment, case_requests(share * rate, count))
        found["link_s_per_prompt"] = link_s
        found[f"unhidden_s_{load}"] = waited_s
        found[f"hidden_share_{load}"] = max(0.0, 1 - waited_s / link_s)
    return found


def _link_waits(deployment: Deployment, requests: Sequence[Arrival]) -> tuple[float, float]:
    """Median seconds that a request whose prompt is computed waits for its log; those of the link
    for the largest part of it."""
    assert deployment.prompts is not None
    cluster = Cluster(deployment, tally := Tally())
    for arrival in requests:
        cluster.advance(arrival.at_s)
        cluster.submit(arrival)
    cluster.advance(float("inf"))
    entry_bytes = max(stage.timing.entry_bytes for stage in deployment.prompts.stages)
    link_s = requests[0].prompt * entry_bytes / deployment.links.network
    return tally.sketches["wait_transfer_s"].quantile(0.5), link_s


def _ratios(name: str, sides: Mapping[str, Side]) -> dict[str, float]:
    rates = {side: found.rate_per_s for side, found in sides.items()}
    model = name.partition("_")[0]
    return {
        f"{name}_rate_gain": rates["disaggregated"] / rates["colocated"],
        f"{model}_vs_chunked": rates["disaggregated"] / rates["chunked"],
        f"{model}_vs_predicted": min(
            found.rate_per_s / found.plain_per_s
            for found in sides.values()
            if found.plain_per_s is not None
        ),
    }


def _results(name: str, sides: Mapping[str, Side], changed: Mapping[str, float]) -> dict[str, Any]:
    split, whole = (sides[side].plain_per_s or 0.0 for side in PREDICTED)
    return {
        **{side: found.results() for side, found in sides.items()},
        "gain_predicted": split / whole,
        "gain_predicted_when": dict(changed),
        "gain_in_paper": PAPER[name],
    }


def _notes(effort: Effort) -> list[str]:
    return [
        "rate: the highest at which the median latency a token is within 1.5 of the unloaded one",
        "rate_gain: disaggregated over colocated with whole prompts, as the paper compares",
        "vs_predicted: the runtime's rate over the plain model's, the lower of these two sides",
        f"vs_chunked: disaggregated over colocated with two chunks of {CHUNK} tokens a step",
        f"{effort.count} requests, the same for all; the middle two thirds of the ends count",
        "A100-80 x 2 a machine, derived profiles; as many microbatches as stages, as the paper has",
        "transfer: by the simulator on the profile's network; links cost nothing in virtual time",
    ]


@contextmanager
def _pools(names: Sequence[str]) -> Iterator[tuple[Executor, Executor, Path]]:
    """Processes for runs, threads for searches, and a folder with a checkpoint for each case."""
    from dvrt.models.tiny import write_tiny

    with TemporaryDirectory() as made:
        folder = Path(made)
        for machines in {CASES[name].machines for name in names}:
            write_tiny(
                folder / str(machines),
                "gpt2",
                n_layers=machines,
                hidden_size=16,
                max_positions=4096,
            )
        n_processes = min(4, len(os.sched_getaffinity(0)))
        runs = ProcessPoolExecutor(n_processes, mp_context=get_context("spawn"))
        searches = ThreadPoolExecutor(len(names) * len(SIDES))
        is_done = False
        try:
            yield runs, searches, folder
            is_done = True
        finally:  # after a signal the caller kills what still runs
            runs.shutdown(wait=is_done, cancel_futures=True)
            searches.shutdown(wait=is_done, cancel_futures=True)
