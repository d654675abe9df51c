"""The simulator proper against the paper's equations, the plain model, and itself step by step."""

from __future__ import annotations

import statistics

import pytest

from dvrt.models.null_timing import NullTiming
from dvrt.planner.equations import (
    colocated_inverse_throughput,
    prompt_inverse_throughput,
    token_inverse_throughput,
)
from dvrt.planner.profile import open_profile
from dvrt.simulator.arrivals import Arrival, Load, arrivals
from dvrt.simulator.deploy import Setup, deploy_profile
from dvrt.simulator.deployment import Deployment, FailureFigures, LinkFigures
from dvrt.simulator.disagg_case import (
    CASES,
    case_requests,
    chunked,
    colocated,
    disaggregated,
    scaled,
)
from dvrt.simulator.plain import plain_latencies
from dvrt.simulator.rates import find_highest_rate, highest_rate, simulated_latencies
from tests.simulator.played import burst, line, play

HOMOGENEOUS = [(4, 100.0, 20.0, 10), (4, 1700.0, 17.0, 200), (8, 300.0, 10.0, 100)]
COUNT = 400


@pytest.mark.parametrize(("stages", "prompt_s", "token_s", "tokens"), HOMOGENEOUS)
def test_equation_3(stages: int, prompt_s: float, token_s: float, tokens: int) -> None:
    timing = NullTiming(decode_s=token_s, chunk_s=prompt_s)
    played = play(
        Deployment(tokens=line(stages, timing, n_layers=stages)),
        burst(COUNT, output=tokens + 1),
    )
    expected = colocated_inverse_throughput(
        stages, prompt_time=prompt_s, token_time=token_s, tokens=tokens
    )
    assert played.makespan_s / COUNT == pytest.approx(expected, rel=0.001)
    assert len(played.ended) == COUNT


@pytest.mark.parametrize("prompt_stages", [1, 2, 3])
@pytest.mark.parametrize(("prompt_s", "token_s", "tokens"), [(100.0, 20.0, 10), (423.0, 8.35, 210)])
def test_the_slower_side_decides(
    prompt_stages: int, prompt_s: float, token_s: float, tokens: int
) -> None:
    machines, layers = 4, 12
    stages = machines - prompt_stages

    def times(n_stages: int) -> NullTiming:
        share = machines / n_stages
        return NullTiming(decode_s=share * token_s, chunk_s=share * prompt_s)

    deployment = Deployment(
        prompts=line(prompt_stages, times(prompt_stages), n_microbatches=prompt_stages + 1),
        tokens=line(stages, times(stages), n_microbatches=stages + 2 * prompt_stages + 1),
    )
    assert layers % prompt_stages == layers % stages == 0
    played = play(deployment, burst(COUNT, output=tokens + 1))
    prompt_side = prompt_inverse_throughput(machines, prompt_stages, prompt_time=prompt_s)
    token_side = token_inverse_throughput(machines, stages, token_time=token_s, tokens=tokens)
    expected = max(prompt_side, token_side)
    assert played.makespan_s / COUNT == pytest.approx(expected, rel=0.03)


SETUPS = {
    "colocated": Setup(stages=4, chunk_tokens=512),
    "small chunks": Setup(stages=3, batch=3, chunk_tokens=100, chunks_per_step=1),
    "many microbatches": Setup(stages=2, microbatches=7, batch=2, chunk_tokens=512),
    "apart": Setup(stages=3, prompt_stages=2, prompt_batch=2, chunk_tokens=512),
    "swapping": Setup(stages=4, batch=2, device_slots=2, chunk_tokens=512),
    "replicas": Setup(stages=4, batch=4, replicas=2, chunk_tokens=512),
}


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("rate", [0.2, 2.0])
def test_a_leap_is_its_steps(name: str, rate: float) -> None:
    """To the last bit: who ends when, and what every stage did."""
    failures = FailureFigures(mtbf_s=300.0, detect_s=1.0) if name in ("apart", "replicas") else None
    deployment = deploy_profile(
        SETUPS[name], open_profile("opt-66b-a100-80").with_gpus(2), failures=failures
    )
    load = Load(source="prompt=700,prompt_cv=1,output=40,cv=1", count=150, rate_per_s=rate)
    leaping = play(deployment, arrivals(load))
    stepping = play(deployment, arrivals(load), leaps=False)
    assert leaping.ended == stepping.ended
    assert leaping.tally.quantiles() == stepping.tally.quantiles()
    assert leaping.tally.busy_s == pytest.approx(stepping.tally.busy_s)
    ours, theirs = dict(leaping.counts), dict(stepping.counts)
    assert ours.pop("decisions") < theirs.pop("decisions")
    assert ours == theirs


def test_noting_times_changes_nothing() -> None:
    """The short way of steps that nobody asks about, and the long one."""
    deployment = deploy_profile(SETUPS["colocated"], open_profile("opt-66b-a100-80"))
    load = Load(source="prompt=700,output=40,cv=1", count=100, rate_per_s=1.0)
    never = FailureFigures(mtbf_s=1e12)
    noted = deploy_profile(SETUPS["colocated"], open_profile("opt-66b-a100-80"), failures=never)
    short, long = play(deployment, arrivals(load)), play(noted, arrivals(load))
    assert short.ended == long.ended
    assert short.tally.busy_s == pytest.approx(long.tally.busy_s)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [colocated, disaggregated])
@pytest.mark.parametrize("load", [0.1, 0.4])
def test_the_plain_model_agrees(case: str, shape, load: float) -> None:
    deployment = shape(CASES[case])
    requests = case_requests(count=400)
    plain = plain_latencies(deployment, requests(load))
    proper = simulated_latencies(deployment, requests(load))
    assert len(plain) == len(proper) == 400
    assert statistics.median(proper) == pytest.approx(statistics.median(plain), rel=0.04)


def test_disaggregation_gains_what_the_plain_model_says() -> None:
    case, requests = CASES["opt66b_4"], case_requests(count=250)
    rates = {
        (shape, latencies): highest_rate(shape(case), requests, latencies=latencies).rate_per_s
        for shape in (colocated, disaggregated)
        for latencies in (plain_latencies, simulated_latencies)
    }
    plain, proper = (
        rates[disaggregated, latencies] / rates[colocated, latencies]
        for latencies in (plain_latencies, simulated_latencies)
    )
    assert plain > 1.5
    assert proper == pytest.approx(plain, rel=0.12)


def test_scaled_step_times() -> None:
    given = disaggregated(CASES["opt66b_4"])
    slower = scaled(given, prompts=2.0, tokens=3.0)
    one = Arrival(0.0, 1000, 2)
    first, second = (play(each, [one]).ended[0] for each in (given, slower))
    assert second.first_s == pytest.approx(2 * first.first_s)
    assert second.end_s - second.first_s == pytest.approx(3 * (first.end_s - first.first_s))


def test_chunks_do_not_hold_up_tokens() -> None:
    """The longest wait between two tokens is a chunk's, not a prompt's."""
    case, requests = CASES["opt66b_4"], case_requests(count=200)
    whole = play(colocated(case), requests(0.5)).tally.sketches["tpot_s"]
    parts = play(chunked(case), requests(0.5)).tally.sketches["tpot_s"]
    assert parts.quantile(0.99) < whole.quantile(0.99)


def test_the_search_for_a_rate() -> None:
    found = find_highest_rate(lambda rate: 1.0 + rate, 1.0, slack=1.5)
    assert found.rate_per_s == pytest.approx(0.5, rel=0.01)
    assert found.median_s <= 1.5


def test_the_network_delays_what_it_cannot_hide() -> None:
    """A prompt's log leaves layer by layer: only the last layer's share is not hidden."""
    timing = NullTiming(chunk_s=10.0, decode_s=1.0, entry_bytes=1000)
    deployment = Deployment(
        prompts=line(1, timing, n_layers=10, n_microbatches=2),
        tokens=line(1, timing, n_layers=10, n_microbatches=2),
        links=LinkFigures(network=1000.0),
    )
    hidden = play(deployment, [Arrival(0.0, 5, 2)]).ended[0]
    assert hidden.first_s == 10.0
    assert hidden.end_s == pytest.approx(10.0 + 0.5 + 1.0)
    late = play(deployment, [Arrival(0.0, 50, 2)]).ended[0]
    assert late.end_s == pytest.approx(1.0 + 50.0 + 1.0)


@pytest.mark.parametrize("case", CASES)
def test_a_leap_is_its_steps_when_logs_come_with_the_first_token(case: str) -> None:
    deployment, requests = disaggregated(CASES[case]), case_requests(count=120)
    leaping = play(deployment, requests(1.0))
    assert leaping.ended == play(deployment, requests(1.0), leaps=False).ended
