"""Which cluster a request goes to, decided as it comes and from nothing but what came before."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from dvrt.errors import ConfigError
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.deployment import Deployment

Route = Callable[[Arrival], int]
ROUND_ROBIN, LEAST_WORK = "round-robin", "least-work"
ROUTERS = (ROUND_ROBIN, LEAST_WORK)


def make_router(name: str, deployment: Deployment) -> Route:
    """A fresh router for all requests of a load, in order of arrival."""
    if name == ROUND_ROBIN:
        return _round_robin(deployment.clusters)
    if name == LEAST_WORK:
        return _least_work(deployment)
    raise ConfigError(f"router is {name!r}; one of {', '.join(ROUTERS)}")


def _round_robin(clusters: int) -> Route:
    turns = itertools.cycle(range(clusters))
    return lambda arrival: next(turns)


def _least_work(deployment: Deployment) -> Route:
    """To the cluster that should be the first to be done with all that it was given.

    The work of a request is what it takes of the busiest stage in full microbatches.
    """
    ends = [(0.0, cluster) for cluster in range(deployment.clusters)]

    def route(arrival: Arrival) -> int:
        end_s, cluster = ends[0]
        end_s = max(end_s, arrival.at_s) + work_s(deployment, arrival)
        heapq.heapreplace(ends, (end_s, cluster))
        return cluster

    return route


def work_s(deployment: Deployment, arrival: Arrival) -> float:
    """Seconds of the busiest stage that a request takes, its share of a full microbatch's steps."""
    tokens, prompts = deployment.tokens, deployment.prompts or deployment.tokens
    chunk = prompts.chunk_tokens
    n_chunks = -(-arrival.prompt // chunk)
    read = arrival.prompt * (arrival.prompt + 1) / 2
    prompt_s = max(
        n_chunks * each.timing.chunk_s
        + arrival.prompt * each.timing.prompt_token_s
        + read * each.timing.prompt_entry_s
        for each in prompts.stages
    )
    context = arrival.prompt + arrival.output / 2
    token_s = max(
        each.timing.decode_s / tokens.batch_size
        + each.timing.decode_row_s
        + context * each.timing.decode_entry_s
        for each in tokens.stages
    )
    decode_s = (arrival.output - 1) * token_s
    return max(prompt_s, decode_s) if deployment.prompts else prompt_s + decode_s
