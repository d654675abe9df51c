"""The planner proper: valid, better than the public one, ranked, explained."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.errors import ConfigError
from dvrt.planner import equations
from dvrt.planner.cost import CostModel
from dvrt.planner.equation_report import report_equations
from dvrt.planner.explain import explain, swap_verdict
from dvrt.planner.imports import profile_from_public
from dvrt.planner.judge import SloTargets
from dvrt.planner.latency import predict_latency
from dvrt.planner.launch_line import launch_line
from dvrt.planner.memory import memory_needs, missing_bytes
from dvrt.planner.output import draw_plan, plan_to_json
from dvrt.planner.plan import Plan, PlanInput, make_plan
from dvrt.planner.profile import Profile, open_profile
from dvrt.planner.public import PublicPlannerError, answer
from dvrt.planner.split import FAMILIES, Split, enumerate_splits, useful_depths
from dvrt.planner.workload import Workload, fixed_workload, lognormal_workload
from tests.planner.cases import CASES

ONE_PIPELINE = ("colocated", "disaggregated")
PLAIN = {"swap": False, "replicas": (0,), "usable_share": 1.0}
PAPER = lognormal_workload(1000, 210, clip=(2, 1000))


def paper(rate_per_s: float) -> Workload:
    return replace(PAPER, rate_per_s=rate_per_s)


def public_plan(letter: str, families: tuple[str, ...] = FAMILIES) -> Plan:
    case = CASES[letter]
    return make_plan(
        PlanInput(
            profile=profile_from_public(case),
            workload=fixed_workload(case.prompt_len, case.num_extra_tokens),
            machines=case.num_machines,
            families=families,
            stream_overhead=case.prompt_stream_overhead,
            **PLAIN,
        )
    )


def opt_66b(machines: int = 4, **changes: object) -> PlanInput:
    given = PlanInput(
        profile=open_profile("opt-66b-a100-80").with_gpus(2),
        workload=PAPER,
        machines=machines,
    )
    return replace(given, **changes)


def test_case_b_where_the_public_planner_fails() -> None:
    with pytest.raises(PublicPlannerError):
        answer(CASES["B"])
    plan = public_plan("B", ONE_PIPELINE)
    split = plan.best.split
    assert (split.family, split.prompt_stages, split.stages) == ("disaggregated", 1, 3)
    assert plan.best.cost.inverse_s * 8 == pytest.approx(4.675)  # 22 of 64 layers, not 21.3
    assert plan.families["colocated"].cost.inverse_s * 8 == pytest.approx(4.87475)


def test_case_h_where_the_public_planner_loses_to_the_baseline() -> None:
    public = answer(CASES["H"])
    assert (public.prompt_machines, public.token_machines) == (1, 3)
    plan = public_plan("H", ONE_PIPELINE)
    assert plan.best.split.family == "colocated"
    assert plan.best.cost.inverse_s * 8 == pytest.approx(6.36225)
    assert "does not pay: max(Ip, It) = 6.8 s against Ic = 6.362 s" in " ".join(explain(plan))


@pytest.mark.parametrize("letter", ["B", "H"])
def test_all_families_do_better_still(letter: str) -> None:
    plan = public_plan(letter)
    assert plan.best.cost.inverse_s < public_plan(letter, ONE_PIPELINE).best.cost.inverse_s
    assert missing_bytes(plan.best.needs) == 0


@pytest.mark.parametrize("letter", ["I", "J", "K", "E", "L", "M"])
def test_where_anything_fits_there_is_a_valid_plan(letter: str) -> None:
    plan = public_plan(letter)
    assert plan.best.split.machines <= CASES[letter].num_machines
    assert missing_bytes(plan.best.needs) == 0


def test_case_g_says_how_much_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"even with .* GB missing; a pipeline of \d+ such"):
        public_plan("G")


def test_equations_page_of_case_b() -> None:
    case = CASES["B"]
    report = report_equations(
        profile_from_public(case), fixed_workload(1000, 200), machines=4, batch=8
    )
    assert report.colocated_s == pytest.approx(4.87475)
    assert report.ideal_s == pytest.approx(4.25)
    assert (report.min_prompt_machines, report.min_token_machines) == (1, 1)
    sides = [(line.prompt_s, line.token_s) for line in report.splits]
    assert sides[0] == (pytest.approx(3.4), pytest.approx(4.53333, abs=1e-5))
    best = report.best_split()
    assert best is not None
    assert (best.prompt_machines, best.token_machines) == (1, 3)
    assert report.ideal_gains
    assert json.dumps(report.to_json())


def test_every_integer_split_is_there() -> None:
    splits = list(enumerate_splits(7, layers=70, batches=(4, 8), replicas=(0, 1, 2)))
    assert len(set(splits)) == len(splits)
    pairs = {(s.prompt_stages, s.stages) for s in splits if s.family == "disaggregated"}
    assert {(prompt, 7 - prompt) for prompt in range(1, 7)} <= pairs
    batches = {(s.prompt_batch, s.batch) for s in splits if s.prompt_stages == 3 and s.stages == 4}
    assert batches == {(4, 4), (4, 8), (8, 4), (8, 8)}
    assert {s.groups for s in splits if s.family == "data-parallel"} >= {2, 3, 7}
    assert {s.replicas for s in splits} == {0, 1, 2}
    assert {s.swap for s in splits} == {False, True}
    assert {s.family for s in splits} == set(FAMILIES)


@given(machines=st.integers(1, 40), layers=st.integers(1, 48))
def test_splits_are_possible(machines: int, layers: int) -> None:
    for split in enumerate_splits(machines, layers=layers, batches=(2,)):
        assert 1 <= split.machines <= machines
        assert split.stages <= layers
        assert split.prompt_stages <= layers
        assert split.replicas < split.stages
        assert not (split.swap and split.stages <= 2)


@given(deepest=st.integers(1, 64), layers=st.integers(1, 64))
def test_a_depth_left_out_has_a_shorter_one_with_the_same_stage(deepest: int, layers: int) -> None:
    depths = useful_depths(deepest, layers)
    for depth in range(1, deepest + 1):
        shorter = max(known for known in depths if known <= depth)
        assert math.ceil(layers / shorter) == math.ceil(layers / depth)


@settings(max_examples=40)
@given(
    machines=st.integers(1, 9),
    layers=st.integers(1, 12),
    memory_gb=st.integers(1, 60),
    share=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_never_an_invalid_plan_and_none_only_if_nothing_fits(
    machines: int, layers: int, memory_gb: int, share: float
) -> None:
    base = open_profile("opt-66b-a100-80")
    profile = replace(
        base,
        model=replace(base.model, layers=layers),
        machine=replace(base.machine, memory_bytes=memory_gb * 10**9),
    )
    workload = fixed_workload(1000, 100)
    request = PlanInput(
        profile=profile,
        workload=workload,
        machines=machines,
        batches=(1, 8),
        usable_share=share,
        replicas=(0,),
    )
    possible = [
        Split(family="colocated", groups=1, stages=stages, batch=1, swap=swap)
        for stages in range(1, min(machines, layers) + 1)
        for swap in (False, True)
        if stages > 2 or not swap
    ]
    fits = any(
        not missing_bytes(memory_needs(profile, workload, split, usable_share=share))
        for split in possible
    )
    if not fits:
        valid = [s for s in request.splits() if not missing_bytes(request.needs(s))]
        if not valid:
            with pytest.raises(ConfigError, match="missing"):
                make_plan(request)
            return
    plan = make_plan(request)
    assert missing_bytes(plan.best.needs) == 0
    assert plan.best.split.machines <= machines
    rates = [candidate.cost.requests_per_s for candidate in plan.alternatives]
    assert rates == sorted(rates, reverse=True)
    assert all(rate <= plan.best.cost.requests_per_s * (1 + 1e-8) for rate in rates)


def test_costs_are_the_equations_where_layers_divide() -> None:
    """BLOOM has 70 layers: five, seven and two divide it, the network is not in the way."""
    profile = open_profile("bloom-176b-h200")
    profile = replace(profile, head=None)
    workload = fixed_workload(1000, 200)
    model = CostModel(profile, workload, stream_overhead=1.1)
    y = 10 * profile.prompt.seconds(4, 1000)
    t = 10 * profile.token.seconds(4, workload.mean_context)
    colocated = model.cost(Split(family="colocated", groups=1, stages=7, batch=4))
    assert colocated.inverse_s * 4 == pytest.approx(
        equations.colocated_inverse_throughput(7, prompt_time=y, token_time=t, tokens=200)
    )
    apart = model.cost(
        Split(family="disaggregated", groups=1, stages=5, batch=4, prompt_stages=2, prompt_batch=4)
    )
    assert apart.prompt_side_s * 4 == pytest.approx(
        equations.prompt_inverse_throughput(7, 2, prompt_time=y, stream_overhead=1.1)
    )
    assert apart.token_side_s * 4 == pytest.approx(
        equations.token_inverse_throughput(7, 5, token_time=t, tokens=200)
    )


def test_memory_is_equations_1_and_2_in_bytes() -> None:
    given = opt_66b()
    split = Split(
        family="disaggregated", groups=1, stages=2, batch=8, prompt_stages=2, prompt_batch=4
    )
    token, host, prompt = memory_needs(given.profile, given.workload, split)
    model = given.profile.model
    row = model.kv_bytes_per_token * 32 * 2112  # 2000 entries in extents of 64, and one more
    assert token.kv_bytes == 2 * 8 * row
    assert prompt.kv_bytes == 2 * 4 * row
    assert token.weight_bytes == 32 * model.layer_weight_bytes + model.embedding_bytes
    assert host.needed_bytes == 0
    ringed = replace(split, stages=4, swap=True, replicas=1)
    token, host, _ = memory_needs(given.profile, given.workload, ringed)
    assert token.kv_bytes == 2 * 8 * row // 2
    assert host.kv_bytes == 2 * 4 * 8 * row // 2


def test_a_slow_network_makes_streaming_cost() -> None:
    given = opt_66b()
    split = Split(
        family="disaggregated", groups=1, stages=3, batch=8, prompt_stages=1, prompt_batch=8
    )
    slow = replace(given.profile, machine=replace(given.profile.machine, network=1e9))
    fast = replace(given.profile, machine=replace(given.profile.machine, network=1e12))
    assert CostModel(fast, given.workload).stage_times(split).stream_overhead == 1
    slowed = CostModel(slow, given.workload).cost(split)
    assert slowed.times.stream_overhead > 2
    assert slowed.requests_per_s < CostModel(fast, given.workload).cost(split).requests_per_s


def test_chunks_at_every_step_leave_no_bubble() -> None:
    given = opt_66b(workload=fixed_workload(1000, 125))
    model = CostModel(given.profile, given.workload)
    whole = model.cost(Split(family="colocated", groups=1, stages=4, batch=8))
    chunked = model.cost(Split(family="chunked", groups=1, stages=4, batch=8, chunk=64))
    times = chunked.times
    assert chunked.inverse_s * 8 == pytest.approx(times.prompt_s + times.decode_s, rel=0.05)
    assert chunked.inverse_s < whole.inverse_s
    tiny = model.cost(Split(family="chunked", groups=1, stages=4, batch=64, chunk=64))
    assert tiny.inverse_s * 64 > tiny.times.prompt_s + 3 * tiny.times.decode_s


def test_failures_make_replicas_worth_their_traffic() -> None:
    without = make_plan(opt_66b(8))
    assert without.best.split.replicas == 0
    failing = make_plan(opt_66b(8, mtbf_hours=2.0, families=("colocated",)))
    assert failing.best.split.replicas == 1
    assert 0.5 < failing.best.cost.availability < 1
    assert "replicas keep it available" in " ".join(explain(failing))


def test_swapping_pays_for_short_contexts_and_not_for_long_ones() -> None:
    """OPT-66B over 4 machines of 2 GPUs: 2N t against the transfers of twice the batch."""
    short = make_plan(opt_66b(4, workload=fixed_workload(64, 128), families=("colocated",)))
    long = make_plan(opt_66b(4, families=("colocated",), batches=(4, 8)))
    for plan, pays in ((short, None), (long, False)):
        verdict = swap_verdict(plan)
        assert verdict is not None
        transfers = plan.model.transfer_times(
            replace(plan.best.split, batch=verdict.batch, swap=True)
        )
        token_s = verdict.doubled_s / 2 / plan.given.workload.mean_output
        assert verdict.swapped_s >= verdict.doubled_s / 2 * (1 - 1e-3)
        assert verdict.hidden_context == pytest.approx(
            token_s * plan.given.workload.contexts[-1] / transfers[-1]
        )
        if pays is not None:
            assert verdict.pays is pays
            assert "Swapping does not pay" in " ".join(explain(plan))


def test_swapping_wins_when_memory_is_short_and_the_link_fast() -> None:
    base = open_profile("opt-66b-a100-80").with_gpus(2)
    machine = replace(base.machine, memory_bytes=42 * 10**9, host_to_device=5e11)
    plan = make_plan(
        opt_66b(
            4,
            profile=replace(base, machine=machine),
            workload=fixed_workload(1000, 210),
            families=("colocated",),
            usable_share=1.0,
        )
    )
    assert plan.best.split.swap
    assert "Without swapping the same shape" in " ".join(explain(plan))
    assert "--swap --device-slots 2" in launch_line(plan)


def test_latency_grows_with_load_and_never_ends_above_it() -> None:
    given = opt_66b()
    split = Split(family="colocated", groups=1, stages=4, batch=8)
    capacity = CostModel(given.profile, given.workload).cost(split).requests_per_s
    seen = []
    for load in (0.1, 0.5, 0.9, 1.1):
        workload = Workload(lengths=given.workload.lengths, rate_per_s=load * capacity)
        model = CostModel(given.profile, workload)
        latency = predict_latency(model, model.cost(split))
        assert latency.utilisation == pytest.approx(load)
        assert latency.ttft_s[0] <= latency.ttft_s[1] <= latency.ttft_s[2]
        seen.append(latency.ttft_s[1])
    assert seen == sorted(seen)
    assert seen[-1] == math.inf


def test_limits_choose_another_split_or_say_that_none_keeps_them() -> None:
    workload = paper(rate_per_s=0.3)
    free = make_plan(opt_66b(workload=workload))
    limit = min(c.latency.ttft_s[1] for c in (free.best, *free.alternatives)) * 1.05
    kept = make_plan(opt_66b(workload=workload, slo=SloTargets(ttft_s=limit)))
    assert kept.keeps_slo
    assert kept.best.latency.ttft_s[1] <= limit
    assert kept.best.cost.requests_per_s <= free.best.cost.requests_per_s
    never = make_plan(opt_66b(workload=workload, batches=(8,), slo=SloTargets(ttft_s=1e-6)))
    assert not never.keeps_slo
    assert "No split keeps the limits" in explain(never)[0]


def test_a_rate_above_every_split_is_said() -> None:
    plan = make_plan(opt_66b(workload=paper(rate_per_s=1e6)))
    assert not plan.keeps_slo
    assert "outrun" in " ".join(explain(plan))


def test_cost_counts_the_machines_in_use() -> None:
    plan = make_plan(opt_66b(objective="cost"))
    dollars = plan.best.cost.dollars_per_million_tokens
    assert dollars is not None
    hours = 1e6 / plan.best.cost.tokens_per_s / 3600
    assert dollars == pytest.approx(hours * plan.best.split.machines * 9.26)
    best = make_plan(opt_66b()).best.cost.dollars_per_million_tokens
    assert best is not None
    assert dollars <= best


def test_explanation_covers_every_family() -> None:
    plan = make_plan(opt_66b(8))
    text = "\n".join(explain(plan))
    for family in FAMILIES:
        assert family in text
    for word in ("Eq. 4", "Swapping", "derived"):
        assert word in text


def test_the_plan_as_json() -> None:
    plan = make_plan(opt_66b(workload=paper(rate_per_s=1e6)))
    document = json.loads(json.dumps(plan_to_json(plan, "some-dir"), allow_nan=False))
    assert document["best"]["ttft_s"]["p95"] is None
    assert document["launch"].startswith("python -m dvrt launch some-dir --")
    assert document["profile_origin"] == "derived"


def test_the_plan_as_a_picture(tmp_path: Path) -> None:
    """In a process of its own: matplotlib keeps its font files open."""
    picture = tmp_path / "plan.svg"
    script = (
        "import sys; from pathlib import Path; from dvrt.planner import *;"
        "from dvrt.planner.output import draw_plan;"
        "draw_plan(make_plan(PlanInput(profile=open_profile('opt-13b-a100-80'),"
        "workload=open_workload('output=210'), machines=2)), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(picture)], check=True, timeout=60)
    assert "svg" in picture.read_text()[:500]


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        draw_plan(make_plan(opt_66b(2)), tmp_path / "plan.unknown")


def test_contexts_beyond_the_models_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="contexts of 2049 tokens; OPT-66B has 2048 positions"):
        opt_66b(workload=fixed_workload(2000, 49))
    assert make_plan(opt_66b(workload=fixed_workload(2000, 48))).best
    bloom = open_profile("bloom-176b-h100").with_gpus(8)
    assert make_plan(opt_66b(profile=bloom, workload=fixed_workload(5000, 48))).best


def test_swapping_is_not_for_what_fits_anyway() -> None:
    plan = make_plan(opt_66b(4, swap=True))
    assert all(
        missing_bytes(plan.given.needs(replace(c.split, swap=False)))
        for c in (plan.best, *plan.alternatives)
    )
    small = open_profile("gpt2-1.5b-h100")
    with pytest.raises(ConfigError, match="fits 4 machines with it fits without it"):
        make_plan(opt_66b(profile=small, workload=fixed_workload(100, 20), swap=True))


def test_nobody_is_led_to_believe_in_tensor_parallelism() -> None:
    assert "no tensor parallelism: 2 GPUs a machine" in " ".join(explain(make_plan(opt_66b())))
    single = make_plan(opt_66b(8, profile=open_profile("opt-13b-h100")))
    assert "tensor parallelism" not in " ".join(explain(single))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"machines": 0}, "0 machines"),
        ({"machines": -4}, "-4 machines"),
        ({"usable_share": 0.0}, "usable_share"),
        ({"stream_overhead": 0.5}, "stream_overhead"),
        ({"mtbf_hours": 0.0}, "mtbf_hours"),
        ({"price_per_hour": -1.0}, "price"),
        ({"price_per_hour": math.nan}, "price"),
        ({"objective": "beauty"}, "objective"),
        ({"replicas": (-1,)}, "replicas"),
        ({"replicas": ()}, "replicas"),
    ],
)
def test_input_that_cannot_be(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        opt_66b(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"families": ("magic",)}, "magic"),
        ({"batches": (0,)}, "batch sizes"),
        ({"replicas": (9,)}, "no split"),
    ],
)
def test_input_that_leaves_nothing(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plan(opt_66b(**wrong))


def test_limits_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="percentile"):
        SloTargets(percentile=42)
    with pytest.raises(ConfigError, match="ttft"):
        SloTargets(ttft_s=-1.0)


def test_a_price_is_needed_to_plan_by_cost() -> None:
    profile: Profile = open_profile("opt-66b-h100")
    with pytest.raises(ConfigError, match="--cost"):
        opt_66b(profile=profile, objective="cost")
    assert make_plan(opt_66b(profile=profile)).best.cost.dollars_per_million_tokens is None
