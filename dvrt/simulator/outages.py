"""When machines fail, and how long it takes until they are noticed and replaced."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dvrt.control.events import StageLost, StageReady
from dvrt.errors import DvrtError

if TYPE_CHECKING:
    from dvrt.simulator.cluster import Cluster


HOPELESS = 1000
"""So many failures in a row without one request that ends are the end of the simulation."""


class Outages:
    """The failures of one cluster's machines, put on its agenda."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._figures = cluster.deployment.failures
        self._down: set[int] = set()
        self._rng = random.Random(f"{self._figures.seed} cluster {cluster.number}")
        self.n_failures = 0
        self._last_end = (0, 0)
        for each in self._figures.given:
            if each.cluster == cluster.number:
                self._put(each.machine, each.at_s)
        if self._figures.mtbf_s is not None:
            for position in range(cluster.deployment.cluster_machines):
                self._put_next(position)

    def _put(self, position: int, at_s: float) -> None:
        self._cluster.agenda.put(at_s, lambda: self._fail(position))

    def _put_next(self, position: int) -> None:
        if self._figures.mtbf_s is not None:
            wait_s = self._rng.expovariate(1 / self._figures.mtbf_s)
            self._put(position, self._cluster.now + wait_s)

    def _fail(self, position: int) -> None:
        """A machine that is down already cannot fail once more."""
        if position in self._down:
            return
        self._down.add(position)
        self.n_failures += 1
        self._despair()
        cluster = self._cluster
        key, stage = cluster.network.ring[position]
        cluster.network.lost(position)
        cluster.lines[key].lose(stage, cluster.now)
        noticed_s = cluster.now + self._figures.detect_s
        load_s = dict(cluster.deployment.lines)[key].stages[stage].load_s
        cluster.agenda.put(noticed_s, lambda: self._notice(key, stage))
        ready_s = noticed_s + self._figures.restart_s + load_s
        cluster.agenda.put(ready_s, lambda: self._replace(position, key, stage))

    def _despair(self) -> None:
        n_ended, n_failures = self._last_end
        if self._cluster.n_ended > n_ended:
            self._last_end = (self._cluster.n_ended, self.n_failures)
        elif self.n_failures - n_failures > HOPELESS:
            raise DvrtError(f"{HOPELESS} failures, and no request ended in between")

    def _notice(self, key: int, stage: int) -> None:
        cluster = self._cluster
        cluster.settle(key)
        cluster.give(StageLost(pipeline=key, stage=stage, now=cluster.now))
        cluster.tick_later()

    def _replace(self, position: int, key: int, stage: int) -> None:
        cluster = self._cluster
        self._down.discard(position)
        cluster.network.machine(position).replace(cluster.now)
        cluster.lines[key].regain(stage, cluster.now)
        cluster.give(StageReady(pipeline=key, stage=stage, now=cluster.now))
        cluster.tick_later()
        self._put_next(position)
