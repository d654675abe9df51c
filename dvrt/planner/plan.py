"""The planner: costs every split that fits, ranks them, and keeps what is needed to explain it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from dvrt.errors import ConfigError
from dvrt.planner.cost import Cost, CostModel
from dvrt.planner.judge import Candidate, Judge, SloTargets
from dvrt.planner.memory import MemoryNeed, least_machines, memory_needs, missing_bytes
from dvrt.planner.profile import Profile
from dvrt.planner.split import FAMILIES, MAX_REPLICAS, Split, enumerate_splits
from dvrt.planner.workload import Workload

USABLE_SHARE = 0.9
ALTERNATIVES = 10
FEW_GROUPS = 16
MORE_GROUPS = (1.1, 1.25, 1.5, 2.0)
OBJECTIVES = ("throughput", "cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInput:
    """All that a plan depends on.

    ``batches`` defaults to the powers of two among the profile's samples (or to those samples).
    ``usable_share`` of device memory is for weights and KV. ``price_per_hour`` overrides the
    profile's. ``objective`` is "throughput" or "cost" (dollars a token). ``slo`` without a rate is
    judged with all rows filled and no wait in the queue.
    """

    profile: Profile
    workload: Workload
    machines: int
    batches: tuple[int, ...] = ()
    families: tuple[str, ...] = FAMILIES
    swap: bool | None = None
    replicas: tuple[int, ...] = (0, 1, MAX_REPLICAS)
    usable_share: float = USABLE_SHARE
    stream_overhead: float | None = None
    mtbf_hours: float | None = None
    price_per_hour: float | None = None
    objective: str = "throughput"
    slo: SloTargets = field(default_factory=SloTargets)

    def __post_init__(self) -> None:
        if self.machines < 1:
            raise ConfigError(f"{self.machines} machines; a plan needs at least one")
        self.profile.model.check_context(self.workload.longest_context)
        if not 0 < self.usable_share <= 1:
            raise ConfigError(f"usable_share is {self.usable_share}; above 0 and at most 1")
        if self.stream_overhead is not None and not 1 <= self.stream_overhead < math.inf:
            raise ConfigError(f"stream_overhead is {self.stream_overhead}; at least 1")
        if self.mtbf_hours is not None and not 0 < self.mtbf_hours < math.inf:
            raise ConfigError(f"mtbf_hours is {self.mtbf_hours}; it must be above 0")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise ConfigError(f"the price is {self.price_per_hour}; at least 0 an hour")
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective {self.objective!r}; one of {', '.join(OBJECTIVES)}")
        if self.is_for_cost and self.price is None:
            raise ConfigError("the objective is cost and nobody gives a price; use --cost")
        if not self.replicas or min(self.replicas) < 0:
            raise ConfigError(f"replicas {self.replicas}: at least one number, none below 0")

    @property
    def is_for_cost(self) -> bool:
        return self.objective == "cost"

    @property
    def price(self) -> float | None:
        if self.price_per_hour is not None:
            return self.price_per_hour
        return self.profile.machine.price_per_hour

    def cost_model(self) -> CostModel:
        return CostModel(
            self.profile,
            self.workload,
            stream_overhead=self.stream_overhead,
            mtbf_hours=self.mtbf_hours,
            price_per_hour=self.price,
        )

    def needs(self, split: Split) -> tuple[MemoryNeed, ...]:
        return memory_needs(self.profile, self.workload, split, usable_share=self.usable_share)

    def splits(self) -> Iterator[Split]:
        return enumerate_splits(
            self.machines,
            layers=self.profile.model.layers,
            batches=self.batches or _default_batches(self.profile),
            families=self.families,
            swap=self.swap,
            replicas=self.replicas,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The winner, the best others in order, the best of each family, and what did not fit.

    ``keeps_slo`` is False when no split keeps the limits; the winner is then the one that comes
    first without them. ``nearest_misses`` has, for a family of which nothing fits, the split that
    misses least.
    """

    given: PlanInput
    model: CostModel
    best: Candidate
    alternatives: tuple[Candidate, ...]
    families: dict[str, Candidate]
    nearest_misses: dict[str, tuple[Split, MemoryNeed]]
    keeps_slo: bool
    n_costed: int
    n_too_large: int


def make_plan(given: PlanInput) -> Plan:
    """The best valid split; ConfigError when none fits, saying how much memory is missing."""
    fitting, misses, n_too_large = _sort_out(given)
    if not fitting:
        raise ConfigError(_nothing_fits(given, misses))
    model = given.cost_model()
    costs = (cost for split in fitting for cost in _by_groups(model, split))
    ranked = sorted(costs, key=partial(_rank, given.objective))
    judge = Judge(model, given.slo, given.needs)
    best = _first_keeping(judge, ranked)
    chosen = best or judge(ranked[0])
    families = _family_bests(given.families, judge, ranked)
    return Plan(
        given=given,
        model=model,
        best=chosen,
        alternatives=tuple(_alternatives(judge, ranked, chosen)),
        families=families,
        nearest_misses={f: miss for f, miss in misses.items() if f not in families},
        keeps_slo=best is not None,
        n_costed=len(ranked),
        n_too_large=n_too_large,
    )


def _by_groups(model: CostModel, split: Split) -> Iterator[Cost]:
    """With a rate also fewer groups than the machines make: of few all numbers, of many those
    about what the rate needs."""
    cost, rate = model.cost(split), model.workload.rate_per_s
    counts = {split.groups}
    if rate is not None:
        needed = math.ceil(rate / cost.requests_per_s * split.groups)
        spare = {math.ceil(needed * share) for share in MORE_GROUPS}
        counts |= set(range(1, min(split.groups, FEW_GROUPS) + 1))
        counts |= {count for count in (needed, needed + 1, *spare) if count <= split.groups}
    for groups in sorted(counts):
        yield cost if groups == split.groups else model.cost(split.in_groups(groups))


Misses = dict[str, tuple[Split, MemoryNeed]]


def _sort_out(given: PlanInput) -> tuple[list[Split], Misses, int]:
    fitting = []
    misses: Misses = {}
    n_too_large = 0
    for split in given.splits():
        needs = given.needs(split)
        missing = missing_bytes(needs)
        if not missing:
            if not _swaps_in_vain(given, split):
                fitting.append(split)
            continue
        n_too_large += 1
        worst = max(needs, key=lambda need: need.missing_bytes)
        if split.family not in misses or missing < misses[split.family][1].missing_bytes:
            misses[split.family] = split, worst
    return fitting, misses, n_too_large


def _swaps_in_vain(given: PlanInput, split: Split) -> bool:
    """Whether all that would be swapped fits the devices, where ``launch`` refuses to swap."""
    return split.swap and not missing_bytes(given.needs(replace(split, swap=False)))


def _nothing_fits(given: PlanInput, misses: Misses) -> str:
    if given.swap and any(_swaps_in_vain(given, split) for split in given.splits()):
        return (
            f"swapping brings nothing: whatever of {given.profile.model.name} fits "
            f"{given.machines} machines with it fits without it"
        )
    if not misses:
        return (
            f"no split of {given.machines} machines exists within families "
            f"{', '.join(given.families)} and the options given"
        )
    split, need = min(misses.values(), key=lambda miss: miss[1].missing_bytes)
    text = f"{given.profile.model.name} does not fit {given.machines} machines: even with "
    text += f"{split.describe()}, {need.describe()}"
    least = least_machines(given.profile, given.workload, usable_share=given.usable_share)
    if least is None:
        return f"{text}; no number of such machines holds a layer and its KV"
    return f"{text}; a pipeline of {least} such machines is the shortest that holds it"


def _rank(objective: str, cost: Cost) -> tuple[float, ...]:
    """Best first; what is equal to nine digits goes by fewer machines, copies and tricks."""
    split = cost.split
    primary = 1 / cost.requests_per_s
    if objective == "cost" and cost.dollars_per_million_tokens is not None:
        primary = cost.dollars_per_million_tokens
    secondary = cost.prompt_side_s + cost.token_side_s
    return (
        float(f"{primary:.9g}"),
        split.machines,
        split.replicas,
        split.swap,
        float(f"{secondary:.9g}"),
        split.batch,
        split.prompt_batch,
        split.chunk,
    )


def _first_keeping(judge: Judge, ranked: Sequence[Cost]) -> Candidate | None:
    candidates = map(judge, ranked)
    return next((candidate for candidate in candidates if not candidate.violations), None)


def _alternatives(judge: Judge, ranked: Sequence[Cost], best: Candidate) -> Iterator[Candidate]:
    """The next best shapes: of splits that differ in batch or options only, the first."""
    seen = {_shape(best.split)}
    for cost in ranked:
        if _shape(cost.split) not in seen:
            seen.add(_shape(cost.split))
            yield judge(cost)
        if len(seen) > ALTERNATIVES:
            return


def _shape(split: Split) -> tuple[str, int, int, int]:
    return split.family, split.groups, split.prompt_stages, split.stages


def _family_bests(
    families: Sequence[str], judge: Judge, ranked: Sequence[Cost]
) -> dict[str, Candidate]:
    """Of each family the first that keeps the limits, or else its first."""
    bests = {}
    for family in families:
        own = [cost for cost in ranked if cost.split.family == family]
        if own:
            bests[family] = _first_keeping(judge, own) or judge(own[0])
    return bests


def _default_batches(profile: Profile) -> tuple[int, ...]:
    sampled = profile.prompt.batches
    powers = [2**k for k in range(12) if sampled[0] <= 2**k <= sampled[-1]]
    return tuple(powers) if len(sampled) > 1 and powers else sampled
