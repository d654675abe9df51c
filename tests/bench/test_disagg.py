"""The runtime in virtual time against the plain model, and the search for a rate."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from dvrt.bench.disagg import (
    CHUNK,
    LEAST_STEEP,
    QUICK,
    SEED,
    SIDES,
    _launched,
    case_requests,
    find_crossing,
    model_rate,
    plain_rate,
    predicted_gain,
    quiet_requests,
    steepness,
)
from dvrt.bench.disagg_virtual import Seen, as_launched, middle, play
from dvrt.models.tiny import write_tiny
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.disagg_case import CASES, PROMPT
from dvrt.simulator.plain import plain_latencies

CASE = CASES["opt66b_4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("disagg") / "null"
    return write_tiny(directory, "gpt2", n_layers=4, hidden_size=16, max_positions=2048)


@pytest.mark.parametrize("side", SIDES)
def test_one_request_takes_what_its_steps_take(model: Path, side: str) -> None:
    deployment = _launched(CASE, side)
    seen = play(model, deployment, [Arrival(0.0, PROMPT, 20)])
    (expected,) = plain_latencies(deployment, [Arrival(0.0, PROMPT, 20)])
    assert seen.median_s == pytest.approx(expected, rel=0.05 if side == "chunked" else 1e-3)
    assert ("transfer" in seen.places) == (side == "disaggregated")
    assert sum(seen.places.values()) == pytest.approx(20 * seen.median_s, rel=1e-6)


@pytest.mark.parametrize(("side", "least"), [("disaggregated", 0.95), ("colocated", 0.75)], ids=str)
def test_a_busy_runtime_is_as_fast_as_the_plain_model(model: Path, side: str, least: float) -> None:
    """Prompts queue and rows fill. In one pipeline the runtime spreads rows over microbatches,
    which the plain model does not, so that fewer tokens wait for others' prompts."""
    deployment = _launched(CASE, side)
    requests = [Arrival(0.2 * i, PROMPT, 12 + 3 * (i % 5)) for i in range(12)]
    seen = play(model, deployment, requests)
    expected = statistics.median(middle(plain_latencies(deployment, requests)))
    assert least < seen.median_s / expected < 1.05


def test_a_request_that_fails_ends_the_run(model: Path) -> None:
    requests = [Arrival(0.0, PROMPT, 5), Arrival(0.0, 0, 5)]
    with pytest.raises(Exception, match="prompt"):
        play(model, _launched(CASE, "colocated"), requests)


def test_all_stages_of_a_launch_have_the_slowest_ones_times() -> None:
    given = SIDES["disaggregated"](CASE)
    launched = as_launched(given)
    assert launched.prompts is not None
    assert given.prompts is not None
    stages = (*launched.tokens.stages, *launched.prompts.stages)
    assert len({replace(stage.timing, entry_bytes=0) for stage in stages}) == 1
    timing = stages[0].timing
    assert timing.decode_s == max(stage.timing.decode_s for stage in given.tokens.stages)
    assert timing.prompt_token_s == given.prompts.stages[0].timing.prompt_token_s
    assert _launched(CASE, "chunked").tokens.chunk_tokens == CHUNK


def test_requests_are_the_same_at_every_rate() -> None:
    slow, fast = case_requests(0.5, 60), case_requests(1.0, 60)
    assert [each.output for each in slow] == [each.output for each in fast]
    assert slow[-1].at_s == pytest.approx(2 * fast[-1].at_s)
    quiet = quiet_requests(60)
    outputs = sorted(each.output for each in slow)
    assert outputs[20] <= quiet[len(quiet) // 2].output <= outputs[40]


@pytest.mark.parametrize("steep", [0.5, 1.3, 2.0])
@pytest.mark.parametrize("guess", [0.4, 0.99, 1.0, 3.0])
def test_the_search_finds_where_the_median_crosses(guess: float, steep: float) -> None:
    asked: list[float] = []

    def seen(rate: float) -> Seen:
        asked.append(rate)
        return Seen(median_s=0.1 + 0.2 * rate**2, places={})

    rate, near = find_crossing(seen, guess, 0.3, steep, QUICK)
    assert rate == pytest.approx(1.0, rel=0.03)
    assert near.median_s == pytest.approx(0.3, rel=0.2)
    assert len(asked) <= (1 if 0.95 < guess < 1.05 else 9)


def test_a_steep_median_is_found_between_two_rates() -> None:
    """It jumps, so that no rate is close; the guess of its steepness is far from right."""

    def seen(rate: float) -> Seen:
        return Seen(median_s=0.1 if rate < 1.0 else 0.9, places={})

    rate, near = find_crossing(seen, 0.7, 0.3, 2.0, QUICK)
    assert rate == pytest.approx(1.0, rel=0.11)
    assert near.median_s == 0.1


def test_the_search_gives_up_when_nothing_helps() -> None:
    with pytest.raises(RuntimeError, match="no crossing"):
        find_crossing(lambda _: Seen(median_s=9.0, places={}), 1.0, 0.3, 2.0, QUICK)


def test_the_steepness_is_that_of_the_queue() -> None:
    deployment = _launched(CASE, "colocated")
    rate = model_rate(deployment, 60, plain_latencies)
    assert steepness(deployment, 60, 0.1) == LEAST_STEEP
    assert LEAST_STEEP < steepness(deployment, 60, rate) < 20


def test_a_rate_is_the_same_wherever_its_search_begins() -> None:
    deployment = _launched(CASE, "disaggregated")
    expected = model_rate(deployment, 60, plain_latencies)
    for factor in (0.7, 1.0, 1.3):
        found = plain_rate(deployment, 60, factor * expected, SEED)
        assert found == pytest.approx(expected, rel=0.011)


def test_other_step_times_and_other_requests_give_other_gains() -> None:
    near = {"disaggregated": 2.1, "colocated": 0.72}
    gain = predicted_gain(CASE, 120, near)
    assert gain == pytest.approx(2.93, rel=0.1)
    assert predicted_gain(CASE, 120, near, scale={"tokens": 1.5}) < 0.95 * gain
    assert predicted_gain(CASE, 120, near, seed=SEED + 1) != gain
