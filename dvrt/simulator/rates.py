"""The highest rate of requests at which a deployment keeps its latency near the unloaded one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dvrt.errors import ConfigError
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.cluster import Cluster
from dvrt.simulator.deployment import Deployment
from dvrt.simulator.tally import Tally

Requests = Callable[[float], Iterable[Arrival]]
"""The same requests at any rate."""
Latencies = Callable[[Deployment, Iterable[Arrival]], list[float]]
SLACK = 1.5
PRECISION = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class HighestRate:
    """Requests a second, and the median seconds a token, unloaded and at that rate."""

    rate_per_s: float
    unloaded_s: float
    median_s: float


def simulated_latencies(deployment: Deployment, requests: Iterable[Arrival]) -> list[float]:
    """As ``plain_latencies``, by the simulator proper and so by the runtime's scheduler."""
    latencies: list[float] = []
    cluster = Cluster(
        deployment,
        Tally(),
        on_end=lambda ended: latencies.append((ended.end_s - ended.arrival_s) / ended.output),
    )
    for arrival in requests:
        cluster.advance(arrival.at_s)
        cluster.submit(arrival)
    cluster.advance(float("inf"))
    return latencies


def highest_rate(
    deployment: Deployment,
    requests: Requests,
    *,
    latencies: Latencies = simulated_latencies,
    slack: float = SLACK,
) -> HighestRate:
    """The rate below which the median stays within ``slack`` times the unloaded one.

    ``requests(rate)`` are those of a Poisson process with one seed, so that only the gaps change.
    ConfigError if no rate up to a million keeps from it.
    """

    def median_s(rate_per_s: float) -> float:
        return statistics.median(latencies(deployment, requests(rate_per_s)))

    unloaded_s = median_s(1e-6)
    return find_highest_rate(median_s, unloaded_s, slack=slack)


def find_highest_rate(
    median_s: Callable[[float], float], unloaded_s: float, *, slack: float = SLACK
) -> HighestRate:
    """By doubling and halving, to half a percent; ``median_s`` should grow with the rate."""
    low, high = 0.0, 1 / 64
    kept_s = unloaded_s
    while (seen_s := median_s(high)) <= slack * unloaded_s:
        low, high, kept_s = high, 2 * high, seen_s
        if high > 1e6:
            raise ConfigError("the latency stays low at every rate")
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        seen_s = median_s(middle)
        if seen_s <= slack * unloaded_s:
            low, kept_s = middle, seen_s
        else:
            high = middle
    return HighestRate(rate_per_s=low, unloaded_s=unloaded_s, median_s=kept_s)
