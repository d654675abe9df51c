"""The public simulators' results to the last digit, and what Equation 3 says of them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from dvrt.errors import ConfigError
from dvrt.planner import equations
from dvrt.planner.workload import lognormal_workload
from dvrt.simulator.compat_chrome import VisitTrace
from dvrt.simulator.compat_model import CompatResult, simulate_colocated, simulate_disaggregated
from dvrt.simulator.compat_steps import Visit
from dvrt.simulator.compat_work import arrivals_us, read_lengths

TINY = [3, 2, 4, 2, 3, 2]
PUBLISHED = [10, 10, 5, 10, 10, 10, 5, 10, 10, 10, 5, 10, 20, 10, 5]


def published(on_visit: VisitTrace | None = None) -> CompatResult:
    return simulate_colocated(
        PUBLISHED, machines=4, prompt_time_ms=1e5, token_time_ms=2e4, on_visit=on_visit
    )


def test_the_published_trace() -> None:
    """15 microbatches on four stages, 100 s a prompt and 20 s a token: 6560 s, 620 events."""
    trace = VisitTrace()
    result = published(trace)
    assert result == published()
    assert (result.makespan_s, result.visits, len(trace.events)) == (6560.0, 620, 620)
    busy_us = sum(event["dur"] for event in trace.events)
    assert busy_us / 4 / 6560e6 == pytest.approx(0.655, abs=5e-4)
    assert {event["pid"] for event in trace.events} == {0, 1, 2, 3}
    assert trace.events[0] == {"name": "p0", "ph": "X", "pid": 0, "ts": 0.0, "dur": 1e8}


def test_no_stage_does_two_things_at_once() -> None:
    visits: list[Visit] = []
    simulate_colocated(
        PUBLISHED, machines=4, prompt_time_ms=1e5, token_time_ms=2e4, on_visit=visits.append
    )
    for stage in range(4):
        own = sorted((v.start_us, v.start_us + v.duration_us) for v in visits if v.stage == stage)
        assert all(end <= start for (_, end), (start, _) in pairwise(own))


def test_four_equal_lengths() -> None:
    result = simulate_colocated([10] * 4, machines=4, prompt_time_ms=1e5, token_time_ms=2e4)
    assert result.makespan_s == 1500.0


@pytest.mark.parametrize(
    ("prompt_machines", "token_machines", "makespan_s"),
    [(1, 3, 6853.3), (2, 2, 6200.0), (3, 1, 11600.0)],
)
def test_the_published_trace_disaggregated(
    prompt_machines: int, token_machines: int, makespan_s: float
) -> None:
    """With the times of the whole model kept: 400 s a prompt, 80 s a token."""
    result = simulate_disaggregated(
        PUBLISHED,
        prompt_machines=prompt_machines,
        token_machines=token_machines,
        prompt_time_ms=4e5 / prompt_machines,
        token_time_ms=8e4 / token_machines,
        cache_time_ms=0.0,
    )
    assert result.makespan_s == pytest.approx(makespan_s, abs=0.05)


def test_tiny_colocated() -> None:
    result = simulate_colocated(TINY, machines=2, prompt_time_ms=10, token_time_ms=1)
    assert (result.makespan_s, result.early_stops) == (0.113, 2)
    assert result.median_latency_s == 0.028125
    assert max(result.latencies_s) == 0.0565
    assert min(result.latencies_s) == 0.035 / 3
    assert result.lines()[1] == "early stops: 2"


def test_tiny_colocated_with_arrivals() -> None:
    result = simulate_colocated(TINY, machines=2, prompt_time_ms=10, token_time_ms=1, rps=10)
    assert result.makespan_s == 0.392938952089438


def test_tiny_disaggregated() -> None:
    result = simulate_disaggregated(
        TINY,
        prompt_machines=1,
        token_machines=1,
        prompt_time_ms=20,
        token_time_ms=2,
        cache_time_ms=0,
    )
    assert result.makespan_s == 0.124
    assert result.median_latency_s == pytest.approx(0.0286667, abs=5e-8)
    cached = simulate_disaggregated(
        TINY,
        prompt_machines=1,
        token_machines=2,
        prompt_time_ms=20,
        token_time_ms=1,
        cache_time_ms=5,
    )
    assert cached.makespan_s == 0.129


def opt_66b_lengths() -> list[int]:
    """512 lengths that add up to those of the reference runs: 107,404 tokens, 209.8 on average."""
    lengths = [output for _, output in lognormal_workload(1000, 216.1, clip=(2, 1000)).lengths] * 2
    short = 107_404 - sum(lengths)
    step = 1 if short > 0 else -1
    for index in range(abs(short)):
        lengths[index % 512] += step
    assert sum(lengths) == 107_404
    return lengths


def test_opt_66b_like_runs() -> None:
    """3-1 waits for tokens alone, so only their number counts; the others move with the lengths."""
    lengths = opt_66b_lengths()
    makespans = {}
    for prompt_machines in (1, 2, 3):
        makespans[prompt_machines] = simulate_disaggregated(
            lengths,
            prompt_machines=prompt_machines,
            token_machines=4 - prompt_machines,
            prompt_time_ms=1692.31 / prompt_machines,
            token_time_ms=33.4 / (4 - prompt_machines),
            cache_time_ms=0.0,
        ).makespan_s
    baseline = simulate_colocated(lengths, machines=4, prompt_time_ms=423, token_time_ms=8.35)
    assert makespans[3] == pytest.approx(3588.986, abs=5e-4)
    assert makespans[2] == pytest.approx(1796.436, rel=0.005)
    assert makespans[1] == pytest.approx(1210.472, rel=0.02)
    assert baseline.makespan_s == pytest.approx(1738.8645, rel=0.03)
    assert baseline.makespan_s / makespans[1] == pytest.approx(1.44, abs=0.04)


def test_opt_66b_like_runs_with_arrivals() -> None:
    """At 0.05 groups a second both finish soon after the last arrival; apart is quicker a token."""
    lengths = opt_66b_lengths()
    together = simulate_colocated(
        lengths, machines=4, prompt_time_ms=423, token_time_ms=8.35, rps=0.05
    )
    apart = simulate_disaggregated(
        lengths,
        prompt_machines=1,
        token_machines=3,
        prompt_time_ms=1692.31,
        token_time_ms=11.133,
        cache_time_ms=50,
        rps=0.05,
    )
    last_s = arrivals_us(512, 0.05, 4)[-1] / 1e6
    assert last_s < apart.makespan_s < together.makespan_s < last_s + 60
    assert together.makespan_s == pytest.approx(2390.382, rel=0.01)
    assert apart.makespan_s == pytest.approx(2381.514, rel=0.01)
    assert together.median_latency_s > 1.5 * apart.median_latency_s


POINTS = [(4, 100, 20, 10), (4, 1700, 17, 200), (8, 300, 10, 100), (4, 423, 8.35, 210)]


@pytest.mark.parametrize(("machines", "y", "t", "tokens"), POINTS)
def test_equal_lengths_obey_equation_3(machines: int, y: float, t: float, tokens: int) -> None:
    """The steady state between two long runs, so that filling and draining cancel: 0.1 %."""
    makespans = [
        simulate_colocated(
            [tokens] * count, machines=machines, prompt_time_ms=y, token_time_ms=t
        ).makespan_s
        for count in (400, 800)
    ]
    per_microbatch_ms = (makespans[1] - makespans[0]) / 400 * 1000
    predicted = equations.colocated_inverse_throughput(
        machines, prompt_time=y, token_time=t, tokens=tokens
    )
    assert per_microbatch_ms == pytest.approx(predicted, rel=1e-3)
    assert makespans[0] / 400 * 1000 == pytest.approx(predicted, rel=1e-3)


@pytest.mark.parametrize(("machines", "y", "t", "tokens"), POINTS)
def test_equal_lengths_obey_both_sides(machines: int, y: float, t: float, tokens: int) -> None:
    for prompt_machines in range(1, machines):
        token_machines = machines - prompt_machines
        result = simulate_disaggregated(
            [tokens] * 400,
            prompt_machines=prompt_machines,
            token_machines=token_machines,
            prompt_time_ms=machines * y / prompt_machines,
            token_time_ms=machines * t / token_machines,
            cache_time_ms=0.0,
        )
        predicted = max(
            equations.prompt_inverse_throughput(machines, prompt_machines, prompt_time=y),
            equations.token_inverse_throughput(
                machines, token_machines, token_time=t, tokens=tokens
            ),
        )
        assert result.makespan_s / 400 * 1000 == pytest.approx(predicted, rel=0.03)


def test_unequal_lengths_are_worse() -> None:
    """Lengths 2 and 18 of mean 10 cost a third more than the equation says."""
    result = simulate_colocated([2, 18] * 200, machines=4, prompt_time_ms=100, token_time_ms=20)
    assert result.makespan_s / 400 * 1000 == pytest.approx(479, rel=0.01)


def test_groups_share_an_arrival_and_the_rest_is_at_zero() -> None:
    arrivals = arrivals_us(7, 10, 3)
    assert arrivals[:3] == [0.0] * 3
    assert len(set(arrivals[3:6])) == 1
    assert arrivals[3] == pytest.approx(46926.81)
    assert arrivals[6] == 0.0
    assert arrivals_us(5, 0, 2) == [0.0] * 5


def test_the_chrome_trace_of_a_disaggregated_run(tmp_path: Path) -> None:
    trace = VisitTrace(prompt_machines=2)
    result = simulate_disaggregated(
        TINY,
        prompt_machines=2,
        token_machines=2,
        prompt_time_ms=10,
        token_time_ms=1,
        on_visit=trace,
    )
    assert len(trace.events) == result.visits == 2 * 6 + 2 * sum(TINY)
    path = tmp_path / "trace.json"
    trace.write(path)
    events = json.loads(path.read_text())
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == [f"{side} Pipeline, Stage {n}" for side in ("Prompt", "Token") for n in (0, 1)]
    assert {"p0", "p5", "t0,0", "t0,2"} <= {event["name"] for event in events}


def test_lengths_are_clipped_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([[7, 0], [7, 5], [7, 5000]] * 200))
    assert read_lengths(path)[:3] == [2, 5, 1000]
    assert len(read_lengths(path)) == 512


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[[1, -2]]", "item 0: generated_tokens"),
        ("[[1, 2], [-1, 2]]", "item 1: prompt_size"),
        ("[[1]]", "item 0"),
        ("[[1, 2.5]]", "generated_tokens"),
        ('[[1, "2"]]', "generated_tokens"),
        ("[3]", "item 0"),
        ("[]", "must be a list"),
        ("{}", "must be a list"),
        ("[", "not JSON"),
    ],
)
def test_bad_traces(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_lengths(path)


def test_bad_runs() -> None:
    times = {"prompt_time_ms": 10.0, "token_time_ms": 1.0}
    with pytest.raises(ConfigError, match="machines is 0"):
        simulate_colocated(TINY, machines=0, **times)
    with pytest.raises(ConfigError, match="token_machines is -1"):
        simulate_disaggregated(TINY, prompt_machines=1, token_machines=-1, **times)
    with pytest.raises(ConfigError, match="6 microbatches for 7 stages"):
        simulate_colocated(TINY, machines=7, **times)
    with pytest.raises(ConfigError, match="prompt_time"):
        simulate_colocated(TINY, machines=2, prompt_time_ms=-1.0, token_time_ms=1.0)
    with pytest.raises(ConfigError, match="token_time"):
        simulate_colocated(TINY, machines=2, prompt_time_ms=1.0, token_time_ms=float("nan"))
    with pytest.raises(ConfigError, match="rps"):
        simulate_colocated(TINY, machines=2, rps=-1.0, **times)
    with pytest.raises(ConfigError, match="cache_time"):
        simulate_disaggregated(
            TINY, prompt_machines=1, token_machines=1, cache_time_ms=float("inf"), **times
        )
