"""Rows that end one by one: the planner's rates beside the simulator's, and its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dvrt.planner.cost import CostModel
from dvrt.planner.plan import Plan, PlanInput, make_plan
from dvrt.planner.profile import Profile, open_profile
from dvrt.planner.refill import Pipeline, refilled
from dvrt.planner.split import FAMILIES, Split
from dvrt.planner.workload import Workload, fixed_workload, open_workload
from dvrt.simulator.arrivals import Load, arrivals
from dvrt.simulator.cluster import Cluster
from dvrt.simulator.deploy import Setup, deploy_profile
from dvrt.simulator.tally import Tally

WORKLOAD = "prompt=1000,output=210,cv=1,longest=1000"
UNEQUAL_PROMPTS = "prompt=500,prompt_cv=1,output=100,cv=0.3,longest=1000"
COUNT = 800


def simulated_rate(profile: Profile, split: Split, workload: str) -> float:
    """Requests a second in the middle of a run, with the options of the launch line."""
    setup = Setup(
        stages=split.stages,
        prompt_stages=split.prompt_stages,
        batch=split.batch,
        prompt_batch=split.prompt_batch or None,
        microbatches=split.microbatches,
        prompt_microbatches=split.prompt_microbatches or None,
        chunk_tokens=split.chunk or open_workload(workload).longest_prompt,
    )
    ends: list[float] = []
    cluster = Cluster(
        deploy_profile(setup, profile), Tally(), on_end=lambda ended: ends.append(ended.end_s)
    )
    for arrival in arrivals(Load(source=workload, count=COUNT)):
        cluster.submit(arrival)
    cluster.advance(float("inf"))
    first, last = round(0.25 * COUNT), round(0.8 * COUNT)
    ends.sort()
    return split.groups * (last - first) / (ends[last] - ends[first])


def of(family: str, stages: int, batch: int, **rest: int) -> Split:
    return Split(family=family, groups=rest.pop("groups", 1), stages=stages, batch=batch, **rest)


OPT, BLOOM = ("opt-66b-a100-80", 2), ("bloom-176b-h100", 4)


@pytest.mark.parametrize(
    ("machine", "split"),
    [
        (OPT, of("colocated", 4, 16)),
        (OPT, of("chunked", 4, 16, chunk=128)),
        (OPT, of("chunked", 2, 16, groups=2, chunk=128)),
        (OPT, of("disaggregated", 2, 16, prompt_stages=2, prompt_batch=1)),
        (OPT, of("disaggregated", 2, 8, prompt_stages=2, prompt_batch=8)),
        (BLOOM, of("colocated", 6, 16)),
        (BLOOM, of("chunked", 3, 16, groups=2, chunk=128)),
        (BLOOM, of("disaggregated", 4, 16, prompt_stages=2, prompt_batch=8)),
    ],
    ids=lambda value: value.describe() if isinstance(value, Split) else value[0],
)
def test_rates_are_the_simulators(machine: tuple[str, int], split: Split) -> None:
    profile = open_profile(machine[0]).with_gpus(machine[1])
    cost = CostModel(profile, open_workload(WORKLOAD)).cost(split)
    assert cost.requests_per_s == pytest.approx(simulated_rate(profile, split, WORKLOAD), rel=0.1)


@pytest.mark.parametrize("split", [of("chunked", 4, 16, chunk=128), of("colocated", 6, 16)])
def test_prompts_of_unequal_length(split: Split) -> None:
    profile = open_profile(OPT[0]).with_gpus(2)
    cost = CostModel(profile, open_workload(UNEQUAL_PROMPTS)).cost(split)
    assert cost.requests_per_s == pytest.approx(
        simulated_rate(profile, split, UNEQUAL_PROMPTS), rel=0.15
    )


LINE = Pipeline(
    stages=4, rows=8, decodes=200, chunks=1, prompts_s=(0.1,), token_s=lambda rows: 0.01
)


def test_one_stage_has_no_bubble() -> None:
    alone = refilled(replace(LINE, stages=1))
    assert alone.bubble_share == pytest.approx(0)
    assert alone.request_s == pytest.approx(0.1 + 0.01 * 201 / 8, rel=0.01)


def test_prompts_that_cost_nothing_hold_nothing_up() -> None:
    free = refilled(replace(LINE, prompts_s=(0.0,), chunks=9))
    assert free.stall_s == 0
    assert free.request_s >= 0.01 * 204.5 / 8


def test_no_more_chunks_than_steps_carry() -> None:
    assert refilled(replace(LINE, rows=4000, chunks=20)).step_s == pytest.approx(
        0.01 + 0.1 / 10, rel=0.05
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_no_split_is_faster_than_its_work(family: str) -> None:
    """Prompts of one token take less than a token step, which is no bubble below nothing."""
    profile = open_profile("opt-13b-a100-80")
    workload = fixed_workload(1, 50)
    model = CostModel(profile, workload)
    given = PlanInput(profile=profile, workload=workload, machines=4, replicas=(0,), batches=(8,))
    for split in given.splits():
        if split.family == family and not split.prompt_stages:
            cost = model.cost(split)
            work_s = cost.times.prompt_s + cost.times.decode_s
            assert cost.inverse_s * split.batch * split.groups >= work_s * (1 - 1e-9)


def test_the_cheapest_plan_buys_no_more_than_the_rate_needs() -> None:
    profile = open_profile("opt-13b-a100-80")

    def plan(rate: float, machines: int) -> Plan:
        lengths = open_workload(WORKLOAD).lengths
        workload = Workload(lengths=lengths, rate_per_s=rate)
        return make_plan(
            PlanInput(
                profile=profile,
                workload=workload,
                machines=machines,
                objective="cost",
                replicas=(0,),
                batches=(8, 16),
            )
        )

    few, more = plan(0.5, 16), plan(4.0, 40)
    assert few.keeps_slo
    assert few.best.split.machines == 1
    cost = few.best.cost
    dollars_per_s = 4.63 * few.best.split.machines / 3600
    mean = few.given.workload.mean_output
    assert cost.requests_per_s > 0.5
    assert cost.dollars_per_million_tokens == pytest.approx(dollars_per_s / (0.5 * mean) * 1e6)
    assert more.keeps_slo
    assert 1 < more.best.split.machines < 40
    fewer = [c for c in more.alternatives if c.split.machines < more.best.split.machines]
    assert all(c.violations or c.cost.dollars_per_million_tokens for c in fewer)
