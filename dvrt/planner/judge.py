"""Candidates: what a split delivers, how long requests take in it, and which limits it breaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from dvrt.errors import ConfigError
from dvrt.planner.cost import Cost, CostModel
from dvrt.planner.latency import PERCENTILES, Latency, predict_latency
from dvrt.planner.memory import MemoryNeed
from dvrt.planner.split import Split

SLO_KEYS = ("ttft", "tpot", "normalized")


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTargets:
    """Limits in seconds that a percentile must keep; None for no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    normalized_s: float | None = None
    percentile: int = 95

    def __post_init__(self) -> None:
        if self.percentile not in PERCENTILES:
            raise ConfigError(f"percentile {self.percentile}; one of 50, 95 and 99")
        for name in SLO_KEYS:
            limit = getattr(self, f"{name}_s")
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise ConfigError(f"the limit {name}={limit} must be a time above 0 s")

    def violations(self, latency: Latency) -> list[str]:
        """What is over its limit, in words; empty when all is kept."""
        at = PERCENTILES.index(self.percentile)
        found = []
        for name in SLO_KEYS:
            limit = getattr(self, f"{name}_s")
            value = getattr(latency, f"{name}_s")[at]
            if limit is not None and value > limit:
                found.append(f"p{self.percentile} {name} {value:.3g} s over {limit:g} s")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One split that fits, what it delivers and where it misses the limits."""

    cost: Cost
    latency: Latency
    needs: tuple[MemoryNeed, ...]
    violations: tuple[str, ...]

    @property
    def split(self) -> Split:
        return self.cost.split


class Judge:
    """Makes candidates of costs. Splits that differ only in replicas share a latency."""

    def __init__(
        self,
        model: CostModel,
        slo: SloTargets,
        needs: Callable[[Split], tuple[MemoryNeed, ...]],
    ) -> None:
        self._model = model
        self._slo = slo
        self._needs = needs
        self._latencies: dict[tuple[Split, float], Latency] = {}

    def __call__(self, cost: Cost) -> Candidate:
        latency = self._latency(cost)
        violations = self._slo.violations(latency)
        rate = self._model.workload.rate_per_s
        if rate is not None and latency.utilisation >= 1:
            violations = [f"{rate:g} requests/s outrun its {cost.requests_per_s:.3g}"]
        return Candidate(
            cost=cost,
            latency=latency,
            needs=self._needs(cost.split),
            violations=tuple(violations),
        )

    def _latency(self, cost: Cost) -> Latency:
        key = (replace(cost.split, replicas=0), cost.requests_per_s)
        if key not in self._latencies:
            self._latencies[key] = predict_latency(self._model, cost)
        return self._latencies[key]
