"""The runtime in virtual time against the plain model, and the search for a rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dvrt.bench.disagg import (
    CHUNK,
    QUICK,
    SIDES,
    _launched,
    case_requests,
    find_crossing,
    quiet_requests,
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


@pytest.mark.parametrize("guess", [0.4, 1.0, 3.0])
def test_the_search_finds_where_the_median_crosses(guess: float) -> None:
    n_asked = 0

    def seen(rates: Sequence[float]) -> list[Seen]:
        nonlocal n_asked
        n_asked += len(rates)
        return [Seen(median_s=0.1 + 0.2 * rate**2, places={}) for rate in rates]

    rate, near = find_crossing(seen, guess, 0.3, QUICK)
    assert rate == pytest.approx(1.0, rel=0.01)
    assert near.median_s <= 0.3
    assert n_asked <= 20


def test_the_search_gives_up_when_nothing_helps() -> None:
    def seen(rates: Sequence[float]) -> list[Seen]:
        return [Seen(median_s=9.0, places={}) for _ in rates]

    with pytest.raises(RuntimeError, match="no crossing"):
        find_crossing(seen, 1.0, 0.3, QUICK)
