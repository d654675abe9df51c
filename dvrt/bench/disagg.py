"""``bench disagg``: prompts apart from tokens over one pipeline for both, by what rate each keeps.

The paper's Fig. 8 on the real runtime, with null devices under virtual time, beside a plain model.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvrt.bench.common import Measured, spread
from dvrt.bench.disagg_virtual import Seen, as_launched, middle, play
from dvrt.planner.profile import open_profile
from dvrt.process_pool import ProcessPool
from dvrt.simulator.arrivals import Arrival, arrivals
from dvrt.simulator.cluster import Cluster
from dvrt.simulator.deployment import Deployment, LinkFigures
from dvrt.simulator.disagg_case import (
    CASES,
    N_REQUESTS,
    DisaggregationCase,
    case_load,
    chunked,
    colocated,
    disaggregated,
    scaled,
)
from dvrt.simulator.plain import plain_latencies
from dvrt.simulator.rates import (
    PRECISION,
    SLACK,
    Latencies,
    find_highest_rate,
    simulated_latencies,
)
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
SEED = 42
STRIDE = 1.07
MAX_STRIDE = 1.25
LEAST_STEEP = 0.25
MAX_PROCESSES = 12
TRANSFER_LOADS = {"alone": 0.01, "at_three_quarters": 0.75}
"""Shares of the highest rate on the profile's network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """``count`` requests a run; a rate that seems this ``close`` to the limit is corrected to it,
    and so are two rates on either side of it ``within`` this factor. By the plain model alone: so
    many ``others`` sets of requests, and one of ``more``.
    """

    count: int
    close: float
    within: float
    others: int
    more: int


FULL = Effort(count=400, close=0.03, within=1.04, others=5, more=N_REQUESTS)
QUICK = Effort(count=120, close=0.05, within=1.11, others=4, more=500)


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
        for name in names:
            sides = {side: jobs[name, side].result() for side in SIDES}
            ratios |= _ratios(name, sides)
            results[name] = _results(name, sides) | bench.predictions(CASES[name], sides)
    return Measured(results=results, ratios=ratios, notes=_notes(effort, results))


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
        steep = self._runs.submit(steepness, deployment, count, guess)
        unloaded = self._runs.submit(play, model, deployment, quiet_requests(count)).result()

        def seen(rate: float) -> Seen:
            return self._runs.submit(play, model, deployment, case_requests(rate, count)).result()

        limit_s = SLACK * unloaded.median_s
        rate, near = find_crossing(seen, guess, limit_s, steep.result(), self._effort)
        return Side(
            rate_per_s=rate,
            unloaded_s=unloaded.median_s,
            places=near.places,
            simulated_per_s=guess,
            plain_per_s=plain.result() if plain is not None else None,
        )

    def predictions(
        self, case: DisaggregationCase, sides: Mapping[str, Side]
    ) -> dict[str, dict[str, Any]]:
        """What the models say beside the runtime: of other step times, other requests, links."""
        count, submit = self._effort.count, self._runs.submit
        near = {side: sides[side].plain_per_s or 0.0 for side in PREDICTED}
        sent = submit(_transfer, case, count)
        changed = {
            f"{what}_x{factor:g}": submit(predicted_gain, case, count, near, scale={what: factor})
            for what, factors in CHANGES.items()
            for factor in factors
        }
        others = [
            submit(predicted_gain, case, count, near, seed=SEED + number)
            for number in range(1, 1 + self._effort.others)
        ]
        more = submit(predicted_gain, case, self._effort.more, near)
        return {
            "gain_predicted_when": {name: each.result() for name, each in changed.items()},
            "gain_predicted_of_others": spread([each.result() for each in others]),
            "gain_predicted_of_more": {"requests": self._effort.more, "gain": more.result()},
            "transfer": sent.result(),
        }


def find_crossing(
    seen: Callable[[float], Seen], guess: float, limit_s: float, steep: float, effort: Effort
) -> tuple[float, Seen]:
    """The rate at which the median reaches ``limit_s``, and what was seen at a rate close by.

    ``steep`` is by what power the median grows with the rate, which leads from a rate that is close
    to that one; else a straight line does between two rates. Raises RuntimeError when
    neither is found.
    """
    known: dict[float, Seen] = {}
    rate = guess
    for _ in range(MAX_ROUNDS):
        known[rate] = seen(rate)
        seems = (limit_s / known[rate].median_s) ** (1 / steep)
        if abs(seems - 1) <= effort.close:
            return rate * seems, known[rate]
        above = min((r for r, it in known.items() if it.median_s > limit_s), default=None)
        below = max((r for r in known if above is None or r < above), default=None)
        if above is None or below is None:
            rate *= min(max(seems, 1 / MAX_STRIDE), MAX_STRIDE)
            steep = max(LEAST_STEEP, steep / 2)  # so far off it may be another
            continue
        low_s, high_s = known[below].median_s, known[above].median_s
        rate = below + (above - below) * (limit_s - low_s) / (high_s - low_s)
        if above <= below * effort.within:
            return rate, known[below]
    raise RuntimeError(f"no crossing of {limit_s:g} s near {guess:g} requests a second")


def steepness(deployment: Deployment, count: int, rate: float) -> float:
    """By what power of the rate the median grows around it, as the simulator has it."""
    low_s, high_s = (
        statistics.median(
            middle(simulated_latencies(deployment, case_requests(factor * rate, count)))
        )
        for factor in (1 / STRIDE, STRIDE)
    )
    return max(LEAST_STEEP, math.log(high_s / low_s) / (2 * math.log(STRIDE)))


def model_rate(deployment: Deployment, count: int, latencies: Latencies) -> float:
    """The highest rate by a model, measured as the runtime's."""

    def median_s(requests: Sequence[Arrival]) -> float:
        return statistics.median(middle(latencies(deployment, requests)))

    unloaded_s = median_s(quiet_requests(count))
    found = find_highest_rate(lambda rate: median_s(case_requests(rate, count)), unloaded_s)
    return found.rate_per_s


def predicted_gain(
    case: DisaggregationCase,
    count: int,
    near: Mapping[str, float],
    *,
    seed: int = SEED,
    scale: Mapping[str, float] | None = None,
) -> float:
    """The plain model's gain for some requests and step times; ``near`` are rates to begin at."""
    split, whole = (
        plain_rate(scaled(_launched(case, side), **(scale or {})), count, near[side], seed)
        for side in PREDICTED
    )
    return split / whole


def plain_rate(deployment: Deployment, count: int, near: float, seed: int) -> float:
    """As ``model_rate`` by the plain model, in fewer tries where a rate close by is known."""

    def median_s(requests: Sequence[Arrival]) -> float:
        return statistics.median(middle(plain_latencies(deployment, requests)))

    limit_s = SLACK * median_s(quiet_requests(count, seed))

    def is_kept(rate: float) -> bool:
        return median_s(case_requests(rate, count, seed)) <= limit_s

    low = high = near
    while not is_kept(low):
        low, high = low / STRIDE, low
    while low == high or is_kept(high):
        low, high = high, high * STRIDE
    while high - low > PRECISION * high:
        between = (low + high) / 2
        low, high = (between, high) if is_kept(between) else (low, between)
    return low


def case_requests(rate_per_s: float, count: int, seed: int = SEED) -> list[Arrival]:
    """The same requests at every rate: only the gaps between them change."""
    return list(arrivals(case_load(rate_per_s, count=count, seed=seed)))


def quiet_requests(count: int, seed: int = SEED) -> list[Arrival]:
    """A few that stand for all of them, by length of output, one long after the other."""
    ordered = sorted(case_requests(1.0, count, seed), key=lambda each: each.output)
    step = len(ordered) / N_QUIET
    chosen = (ordered[int((i + 0.5) * step)] for i in range(N_QUIET))
    return [each._replace(at_s=i * QUIET_S) for i, each in enumerate(chosen)]


def _launched(case: DisaggregationCase, side: str) -> Deployment:
    deployment = as_launched(SIDES[side](case))
    if side != "chunked":
        return deployment
    return replace(deployment, tokens=replace(deployment.tokens, chunk_tokens=CHUNK))


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


def _results(name: str, sides: Mapping[str, Side]) -> dict[str, Any]:
    split, whole = (sides[side].plain_per_s or 0.0 for side in PREDICTED)
    return {
        **{side: found.results() for side, found in sides.items()},
        "gain_predicted": split / whole,
        "gain_in_paper": PAPER[name],
    }


def _notes(effort: Effort, results: Mapping[str, Any]) -> list[str]:
    return [
        "rate: the highest at which the median latency a token is within 1.5 of the unloaded one",
        "rate_gain: disaggregated over colocated with whole prompts, as the paper compares",
        "vs_predicted: the runtime's rate over the plain model's, the lower of these two sides",
        f"vs_chunked: disaggregated over colocated with two chunks of {CHUNK} tokens a step",
        f"{effort.count} requests, the same for all; the middle two thirds of the ends count",
        *(_by_chance(name, found) for name, found in results.items()),
        "A100-80 x 2 a machine, derived profiles; as many microbatches as stages, as the paper has",
        "transfer: by the simulator on the profile's network; links cost nothing in virtual time",
    ]


def _by_chance(name: str, found: Mapping[str, Any]) -> str:
    gains = [found["gain_predicted"], *found["gain_predicted_of_others"]["repeats"]]
    share = statistics.stdev(gains) / statistics.fmean(gains)
    more = found["gain_predicted_of_more"]
    return (
        f"{name}: over {len(gains)} sets of requests the plain model's gain has a standard "
        f"deviation of {share:.1%}; of {more['requests']} requests it is {more['gain']:.2f}"
    )


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
        n_processes = min(MAX_PROCESSES, len(os.sched_getaffinity(0)))
        runs = ProcessPool(n_processes)
        searches = ThreadPoolExecutor(len(names) * len(SIDES))
        is_done = False
        try:
            yield runs, searches, folder
            is_done = True
        finally:
            runs.shutdown(wait=is_done, cancel_futures=True)
            searches.shutdown(wait=is_done, cancel_futures=True)
