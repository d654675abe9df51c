"""Loads, routers, sketches, and many clusters over several processes."""

from __future__ import annotations

import json
import math
import random
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import pytest

from dvrt.errors import ConfigError
from dvrt.models.null_timing import NullTiming
from dvrt.planner.profile import open_profile
from dvrt.simulator.arrivals import Arrival, Load, arrivals
from dvrt.simulator.deploy import Setup, check_memory, deploy_profile, deploy_times, profile_stages
from dvrt.simulator.fleet import Job, simulate
from dvrt.simulator.report import outcome_to_json
from dvrt.simulator.router import LEAST_WORK, ROUND_ROBIN, make_router
from dvrt.simulator.sketch import EXACT, Sketch
from dvrt.simulator.tally import Tally
from dvrt.wire import decode, encode

TIMING = NullTiming(decode_s=0.01, prompt_token_s=0.0001, decode_row_s=0.001)
LOAD = Load(source="prompt=100,output=20,cv=1", count=300, rate_per_s=40.0)


def test_a_sketch_is_exact_and_then_within_a_percent() -> None:
    rng = random.Random(7)
    values = [rng.lognormvariate(0, 2) for _ in range(EXACT)]
    sketch = Sketch(values)
    ordered = sorted(values)
    assert sketch.quantile(0.5) == (ordered[EXACT // 2 - 1] + ordered[EXACT // 2]) / 2
    assert (sketch.quantile(0), sketch.quantile(1)) == (ordered[0], ordered[-1])
    more = [rng.lognormvariate(0, 2) for _ in range(50_000)]
    for value in more:
        sketch.add(value)
    ordered = sorted(values + more)
    for share in (0.001, 0.1, 0.5, 0.95, 0.999):
        exact = ordered[round(share * (len(ordered) - 1))]
        assert sketch.quantile(share) == pytest.approx(exact, rel=0.011)
    assert sketch.mean == pytest.approx(sum(ordered) / len(ordered))


@pytest.mark.parametrize(("first", "second"), [(10, 20), (10, 2 * EXACT), (2 * EXACT, 10)])
def test_merged_sketches_are_one_of_all(first: int, second: int) -> None:
    rng = random.Random(8)
    values = [max(0.0, rng.gauss(1, 1)) for _ in range(first + second)]
    merged, other = Sketch(values[:first]), Sketch(values[first:])
    merged.merge(Sketch.from_state(decode(encode(other.state()))))
    whole = Sketch(values)
    for share in (0.0, 0.05, 0.5, 0.99, 1.0):
        assert merged.quantile(share) == pytest.approx(whole.quantile(share), rel=0.011)
    assert merged.n_values == whole.n_values


def test_an_empty_sketch_and_zeros() -> None:
    assert math.isnan(Sketch().quantile(0.5))
    assert Sketch([0.0] * (EXACT + 5)).quantile(0.5) == 0.0
    with pytest.raises(ConfigError, match="from 0 to 1"):
        Sketch([1.0]).quantile(1.5)


def test_a_load_is_the_same_every_time_and_at_any_rate() -> None:
    first, again = list(arrivals(LOAD)), list(arrivals(LOAD))
    assert first == again
    slower = list(arrivals(Load(source=LOAD.source, count=300, rate_per_s=4.0)))
    assert [each[1:] for each in slower] == [each[1:] for each in first]
    assert slower[-1].at_s == pytest.approx(10 * first[-1].at_s)
    assert first[-1].at_s == pytest.approx(300 / 40, rel=0.2)


def write(path: Path, items: list[object]) -> str:
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, items)) if lines else json.dumps(items))
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_trace(tmp_path: Path, suffix: str) -> None:
    trace = write(tmp_path / f"trace.{suffix}", [[5, 2, 1.0], [6, 3, 4]])
    expected = [Arrival(1.0, 5, 2), Arrival(4.0, 6, 3)]
    assert list(arrivals(Load(source=trace))) == expected
    longer = list(arrivals(Load(source=trace, count=5)))
    assert [each.at_s for each in longer] == [1.0, 4.0, 5.0, 8.0, 9.0]
    drawn = list(arrivals(Load(source=trace, rate_per_s=2.0)))
    assert [each[1:] for each in drawn] == [(5, 2), (6, 3)]


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "no requests"),
        ([[5]], "item 0"),
        ([[5, 2], [5, -2]], "item 1: output is -2"),
        ([[5, 2, 0.1], [5, 2]], "item 1: .* same two or three fields"),
        ([[5, 2], [5, 2, 0.1]], "item 1: .* same two or three fields"),
        ([[0, 2]], "prompt is 0"),
        ([[5, 2.5]], "output is 2.5"),
        ([[5, 2, -1.0]], "arrival_s is -1.0"),
        ([[5, 2, "1"]], "arrival_s is '1'"),
        ([[5, 2, 3.0], [5, 2, 1.0]], "comes after a later one"),
        ([{"prompt": 5}], "expected"),
        ({"a": 1}, "must be a list"),
    ],
)
def test_traces_that_cannot_be(tmp_path: Path, items: list[object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        list(arrivals(Load(source=write(tmp_path / "trace.json", items))))


def test_more_traces_that_cannot_be(tmp_path: Path) -> None:
    torn = tmp_path / "torn.jsonl"
    torn.write_text("[5, 2]\n[5,")
    with pytest.raises(ConfigError, match="not JSON"):
        list(arrivals(Load(source=str(torn))))
    with pytest.raises(ConfigError, match="No such file"):
        list(arrivals(Load(source=str(tmp_path / "nowhere.json"))))
    with pytest.raises(ConfigError, match="number of requests"):
        list(arrivals(Load(source="prompt=5,output=2")))
    for wrong in ({"count": 0}, {"rate_per_s": 0.0}, {"rate_per_s": math.nan}):
        with pytest.raises(ConfigError):
            Load(source="x", **wrong)


def deployment(clusters: int = 5):
    return deploy_times(Setup(stages=2, clusters=clusters, batch=4), TIMING)


def test_routers() -> None:
    given = deployment(3)
    turns = make_router(ROUND_ROBIN, given)
    assert [turns(each) for each in islice(arrivals(LOAD), 4)] == [0, 1, 2, 0]
    least = make_router(LEAST_WORK, given)
    sizes = (1000, 10, 10, 10, 10)
    assert [least(Arrival(0.0, 100, size)) for size in sizes] == [0, 1, 2, 1, 2]
    assert least(Arrival(1e9, 1, 1)) in (1, 2)
    with pytest.raises(ConfigError, match="round-robin"):
        make_router("random", given)


@pytest.mark.parametrize("router", [ROUND_ROBIN, LEAST_WORK])
def test_processes_change_nothing(router: str) -> None:
    given = deployment()
    alone, together = (
        simulate(given, LOAD, router=router, processes=processes) for processes in (1, 3)
    )
    assert (alone.processes, together.processes) == (1, 3)
    assert alone.tally.counts == together.tally.counts
    assert alone.tally.busy_s == pytest.approx(together.tally.busy_s)
    ours, theirs = outcome_to_json(alone), outcome_to_json(together)
    for name, figures in ours["latencies"].items():
        assert theirs["latencies"][name] == pytest.approx(figures), name
    assert ours["requests"] == 300


def test_a_wrong_load_ends_all_processes(tmp_path: Path) -> None:
    trace = write(tmp_path / "trace.json", [[5, 2]] * 40 + [[5, -2]])
    with pytest.raises(ConfigError, match="item 40"):
        simulate(deployment(), Load(source=trace), processes=2)


def test_a_job_travels() -> None:
    profile = open_profile("opt-66b-a100-80")
    job = Job(deployment=deploy_profile(Setup(stages=4, prompt_stages=2), profile), load=LOAD)
    assert decode(encode(job)) == job


def test_a_tally_travels() -> None:
    outcome = simulate(deployment(1), LOAD, processes=1)
    again = Tally.from_state(decode(encode(outcome.tally.state())))
    assert again.quantiles() == outcome.tally.quantiles()
    assert again.makespan_s == outcome.tally.makespan_s


def test_a_burst_never_is_in_the_scheduler_as_a_whole() -> None:
    """What waits outside of it changes nothing: the queue holds all that decisions look at."""
    load = Load(source="prompt=100,output=20,cv=1", count=2000)
    outcome = simulate(deployment(1), load, processes=1)
    assert outcome.tally.counts["requests"] == 2000
    waits = outcome.tally.sketches["wait_queue_s"]
    assert waits.largest > 0.8 * outcome.tally.makespan_s


def test_stages_of_a_profile_add_up() -> None:
    profile = open_profile("bloom-176b-a100-80")
    stages = profile_stages(profile, 4, batch=8, chunk_tokens=64)
    assert (stages[0].first, stages[-1].last) == (0, 70)
    rows, context = 8, 1500
    decode_s = sum(stage.timing.decode_step_s([context - 1] * rows) for stage in stages)
    assert decode_s == pytest.approx(profile.stage_token_s(70, rows, context))
    prompt_s = sum(stage.timing.chunk_step_s(0, 1000) for stage in stages)
    assert prompt_s == pytest.approx(profile.stage_prompt_s(70, 1, 1000), rel=0.01)


def test_a_model_that_does_not_fit_says_what_is_missing() -> None:
    profile = open_profile("opt-66b-a100-80")

    def check(**shape: int) -> None:
        check_memory(
            deploy_profile(Setup(**shape), profile),
            profile,
            longest_context=2000,
            usable_share=0.9,
        )

    check(stages=4, batch=1)
    check(stages=4, batch=8, device_slots=2, replicas=1)
    with pytest.raises(ConfigError, match=r"the host of a machine needs .* GB missing"):
        check(stages=4, batch=12, device_slots=2, microbatches=33)
    with pytest.raises(ConfigError, match=r"the host of a machine needs .* GB missing"):
        check(stages=8, batch=8, replicas=7)
    with pytest.raises(ConfigError, match=r"a machine needs .* GB missing"):
        check(stages=1)
    with pytest.raises(ConfigError, match=r"a prompt machine needs .* GB missing"):
        check(stages=4, batch=1, prompt_stages=1)
    with pytest.raises(ConfigError, match=r"a token machine needs .* GB missing"):
        check(stages=1, batch=1, prompt_stages=4)
    with pytest.raises(ConfigError, match="only 64 layers"):
        check(stages=65)


def test_rows_are_those_that_a_launch_allocates() -> None:
    """Whole chunks of 1000, extents of 64 and one more: 2112 positions for 1200 entries."""
    profile = open_profile("opt-13b-a100-80")
    deployment = deploy_profile(Setup(stages=1, batch=8, chunk_tokens=1000), profile)
    weights = profile.model.weight_bytes
    kv = 2 * 8 * 2112 * 40 * profile.model.kv_bytes_per_token
    for spare, fits in ((1, True), (-1, False)):
        sized = profile.with_memory(weights + kv + spare, None)
        expected = nullcontext() if fits else pytest.raises(ConfigError, match="missing")
        with expected:
            check_memory(deployment, sized, longest_context=1200, usable_share=1.0)
    with pytest.raises(ConfigError, match="contexts of 2049 tokens; OPT-13B has 2048"):
        check_memory(deployment, profile, longest_context=2049, usable_share=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": 0},
        {"stages": 2, "batch": 0},
        {"stages": 2, "clusters": 0},
        {"stages": 2, "prompt_stages": -1},
        {"stages": 2, "prompt_batch": 4},
        {"stages": 2, "chunk_tokens": 0},
    ],
)
def test_setups_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Setup(**wrong)
