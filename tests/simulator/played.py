"""Deployments of plain figures for the simulator's tests, and playing one to its end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dvrt.models.null_timing import NullTiming
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.cluster import Cluster
from dvrt.simulator.deployment import Deployment, LineFigures, StageFigures
from dvrt.simulator.tally import Ended, Tally


@dataclass(frozen=True)
class Played:
    tally: Tally
    ended: list[Ended]
    cluster: Cluster

    @property
    def makespan_s(self) -> float:
        return self.tally.makespan_s

    @property
    def counts(self) -> dict[str, float]:
        return self.tally.counts


def line(
    n_stages: int,
    timing: NullTiming,
    *,
    n_layers: int = 12,
    batch_size: int = 1,
    n_microbatches: int | None = None,
    chunk_tokens: int = 1000,
    chunks_per_step: int | None = None,
    load_s: float = 0.0,
) -> LineFigures:
    size = n_layers // n_stages
    assert size * n_stages == n_layers
    stages = tuple(
        StageFigures(first=i * size, last=(i + 1) * size, timing=timing, load_s=load_s)
        for i in range(n_stages)
    )
    return LineFigures(
        stages=stages,
        n_microbatches=n_microbatches or n_stages,
        batch_size=batch_size,
        chunk_tokens=chunk_tokens,
        chunks_per_step=chunks_per_step or batch_size,
    )


def play(deployment: Deployment, requests: Iterable[Arrival], **about: Any) -> Played:
    tally = Tally()
    ended: list[Ended] = []
    cluster = Cluster(deployment, tally, on_end=ended.append, **about)
    for arrival in requests:
        cluster.advance(arrival.at_s)
        cluster.submit(arrival)
    cluster.advance(math.inf)
    cluster.finish()
    cluster.scheduler.check_integrity()
    return Played(tally, ended, cluster)


def burst(count: int, prompt: int = 10, output: int = 11) -> list[Arrival]:
    return [Arrival(0.0, prompt, output)] * count
