"""Predictions for deployments, against the paper's equations and against counting by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.errors import ConfigError
from dvrt.planner import equations as eq
from dvrt.planner.predict import (
    Deployment,
    StageTimes,
    fixed_times,
    predict,
    predict_burst,
    prediction_error,
    profile_times,
)
from dvrt.planner.profile import open_profile
from dvrt.planner.step_fit import fit_steps

Y, T = 1.7, 0.017
PAPER = StageTimes(prompt_s=lambda rows, length: Y, token_s=lambda rows, context: T)
ONE = Deployment(stages=4, microbatches=4, batch_size=8)


def test_whole_prompts_obey_equation_3() -> None:
    found = predict(PAPER, replace(ONE, whole_prompts=True), prompt=1000, output=201)
    expected = eq.colocated_inverse_throughput(4, prompt_time=Y, token_time=T, tokens=200)
    assert 8 / found.requests_per_s == pytest.approx(expected)
    assert found.tokens_per_s == pytest.approx(201 * found.requests_per_s)
    assert found.busy_share == 1.0


@pytest.mark.parametrize("prompt_stages", [1, 2, 3])
def test_pipelines_apart_obey_equation_3(prompt_stages: int) -> None:
    """Y and t of a 4-deep pipeline, spread over fewer machines."""
    stages = 4 - prompt_stages
    prompts = StageTimes(
        prompt_s=lambda rows, length: 4 * Y / prompt_stages, token_s=lambda rows, context: 0.0
    )
    tokens = fixed_times(4 * T / stages)
    shape = Deployment(
        stages=stages, microbatches=stages, batch_size=8, prompt_stages=prompt_stages
    )
    found = predict(tokens, shape, prompt=1000, output=201, prompt_times=prompts)
    prompt_side = eq.prompt_inverse_throughput(4, prompt_stages, prompt_time=Y)
    token_side = eq.token_inverse_throughput(4, stages, token_time=T, tokens=200)
    assert 8 / found.requests_per_s == pytest.approx(max(prompt_side, token_side))
    assert found.first_s == pytest.approx(4 * Y)
    assert found.lap_s == pytest.approx(4 * T)


@given(bandwidth=st.floats(1e3, 1e7), slots=st.integers(2, 4))
def test_swapping_obeys_appendix_g(bandwidth: float, slots: int) -> None:
    times = fixed_times(T, lambda rows, length: 0.0, kv_bytes=10.0)
    shape = replace(ONE, whole_prompts=True, device_slots=slots, swap_bandwidth=bandwidth)
    found = predict(times, shape, prompt=500, output=101)
    transfers = [
        eq.transfer_time(context, batch=8, token_kv=10.0, bandwidth=bandwidth)
        for context in range(501, 601)
    ]
    expected = eq.swapped_decode_time(T, transfers) if slots < 4 else 100 * T
    assert 100 * found.token_step_s == pytest.approx(expected)


def test_chunks_tear_no_bubble_and_cost_their_steps() -> None:
    """1000 tokens at 128 a step are 8 steps without a token of that row."""
    found = predict(PAPER, ONE, prompt=1000, output=201)
    assert 8 / found.requests_per_s == pytest.approx(Y + (200 + 8) * T)


def test_the_null_device_is_bound_by_its_steps() -> None:
    """Four stages of 5 ms, four rows in flight: a token each 5 ms, 20 ms apart in a row."""
    shape = replace(ONE, batch_size=1)
    found = predict(fixed_times(0.005), shape, prompt=1, output=1000)
    assert found.tokens_per_s == pytest.approx(200.0)
    assert found.lap_s == pytest.approx(0.02)
    assert found.total_s == pytest.approx(999 * 0.02)


def test_hops_show_only_without_a_microbatch_to_spare() -> None:
    """A round is 4 steps and 5 hops: 22.5 ms, in which five microbatches have 25 ms of work."""
    tight = replace(ONE, batch_size=1, hop_s=0.0005)
    found = predict(fixed_times(0.005), tight, prompt=1, output=1000)
    assert found.lap_s == pytest.approx(0.0225)
    assert found.busy_share == pytest.approx(20 / 22.5)
    spare = predict(fixed_times(0.005), replace(tight, microbatches=5), prompt=1, output=1000)
    assert (spare.lap_s, spare.busy_share) == (pytest.approx(0.025), 1.0)


def test_too_few_microbatches_leave_stages_idle() -> None:
    found = predict(fixed_times(0.005), replace(ONE, microbatches=1), prompt=1, output=100)
    assert found.busy_share == pytest.approx(0.25)
    assert found.lap_s == pytest.approx(0.02)


def test_replicas_and_streams_are_bound_by_the_link() -> None:
    times = fixed_times(T, kv_bytes=1000.0)
    free = predict(times, replace(ONE, replicas=2), prompt=100, output=101)
    shape = replace(ONE, replicas=2, link=8e5)
    bound = predict(times, shape, prompt=100, output=101)
    assert free.requests_per_s == predict(times, ONE, prompt=100, output=101).requests_per_s
    assert 8 / bound.requests_per_s == pytest.approx(2 * 200 * 8 * 1000 / 8e5)
    apart = replace(ONE, prompt_stages=2, link=8e5)
    streamed = predict(times, apart, prompt=500, output=2)
    assert 8 / streamed.requests_per_s == pytest.approx(500 * 8 * 2 * 1000 / 8e5)
    assert streamed.first_s == pytest.approx(500 * 8 * 2 * 1000 / 8e5)


def test_a_profile_gives_the_slowest_stages_times() -> None:
    profile = open_profile("opt-66b-a100-80")
    times = profile_times(profile, 3)
    assert times.token_s(8, 1000) == pytest.approx(profile.stage_token_s(22, 8, 1000))
    assert times.prompt_s(8, 1000) == pytest.approx(profile.stage_prompt_s(22, 8, 1000))
    assert times.kv_bytes == 22 * profile.model.kv_bytes_per_token
    besides = fit_steps([(1, 100, 0.5), (64, 100, 0.5)], ["1"])
    with_stage = replace(profile, prompt_stage=besides, token_stage=besides)
    slower = profile_times(with_stage, 3)
    assert slower.token_s(8, 1000) == pytest.approx(times.token_s(8, 1000) + 0.5)
    assert slower.prompt_s(8, 1000) == pytest.approx(times.prompt_s(8, 1000) + 0.5)
    for stages in (0, 65):
        with pytest.raises(ConfigError, match="layers"):
            profile_times(profile, stages)


def test_a_burst_runs_until_its_last_row() -> None:
    """Two rows of one microbatch, outputs of 9, 4 and 5: the third gets the second's row.

    All prompts are single steps' worth, computed first: 3 steps of 1 ms, then 8 token steps; the
    third needs one step for its prompt and 4 for tokens after the 3 of the second.
    """
    times = StageTimes(prompt_s=lambda rows, length: 0.001, token_s=lambda rows, context: 0.01)
    shape = Deployment(stages=1, microbatches=1, batch_size=2, prompt_tokens_per_step=1024)
    lengths = [(64, 9), (64, 4), (64, 5)]
    assert predict_burst(times, shape, lengths) == pytest.approx(0.003 + 8 * 0.01)
    assert predict_burst(times, shape, [(64, 9), (64, 4), (64, 9)]) == pytest.approx(
        0.003 + 12 * 0.01
    )


def test_a_burst_of_single_tokens_is_its_prompts() -> None:
    times = StageTimes(prompt_s=lambda rows, length: 0.25, token_s=lambda rows, context: 0.0)
    assert predict_burst(times, ONE, [(10, 1)] * 4) == pytest.approx(1.0)


@given(
    stages=st.integers(1, 5),
    spare=st.integers(0, 2),
    batch=st.integers(1, 4),
    lengths=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 50)), min_size=1, max_size=40),
)
def test_a_burst_lies_between_its_bounds(
    stages: int, spare: int, batch: int, lengths: list[tuple[int, int]]
) -> None:
    """Never less than the rows' tokens over all rows, nor more than one request at a time."""
    shape = Deployment(stages=stages, microbatches=stages + spare, batch_size=batch)
    seconds = predict_burst(fixed_times(0.01), shape, lengths)
    tokens = sum(output - 1 for _, output in lengths)
    assert seconds >= tokens / batch * 0.01 * (1 - 1e-9)
    steps = sum(output - 1 + math.ceil(prompt / 64) for prompt, output in lengths)
    assert seconds <= steps * stages * 0.01 * (1 + 1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": 0},
        {"microbatches": 0},
        {"batch_size": -1},
        {"replicas": -1},
        {"hop_s": -0.1},
        {"link": 0.0},
        {"swap_bandwidth": math.nan},
        {"prompt_tokens_per_step": 0},
    ],
)
def test_deployments_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(ONE, **wrong)


def test_lengths_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="lengths"):
        predict(PAPER, ONE, prompt=0, output=4)
    with pytest.raises(ConfigError, match="burst"):
        predict_burst(PAPER, ONE, [])
    with pytest.raises(ConfigError, match="burst"):
        predict_burst(PAPER, ONE, [(1, 0)])
    with pytest.raises(ConfigError, match="step_s"):
        fixed_times(-1.0)


def test_the_error_is_positive_when_too_much_was_promised() -> None:
    assert prediction_error(110.0, 100.0) == pytest.approx(0.1)
    assert prediction_error(90.0, 100.0) == pytest.approx(-0.1)
