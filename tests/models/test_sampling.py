"""Drawing: what transformers' warpers keep, an exponential race among it, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dvrt.errors import DvrtError
from dvrt.models.sampling import BadLogits, Floats, draw, draw_exponentials
from dvrt.requests import SamplingParams


def make_logits(seed: int, size: int = 200, spread: float = 2.0) -> Floats:
    noise = np.random.default_rng(seed).standard_normal(size)
    return (noise * spread).astype(np.float32)


def warped(logits: Floats, params: SamplingParams, context: list[int]) -> torch.Tensor:
    """The logits behind transformers' processors, in its order."""
    ids, scores = torch.tensor([context]), torch.from_numpy(logits.copy())[None]
    if params.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1.0:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    return scores[0]


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**64 - 1),
    logits_seed=st.integers(0, 1000),
    size=st.sampled_from([3, 40, 700, 5000]),
    temperature=st.floats(0.1, 3.0),
    top_k=st.sampled_from([0, 1, 2, 20, 600, 10_000]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    sample=st.integers(0, 127),
    position=st.integers(0, 100_000),
)
def test_race_among_what_transformers_keeps(
    seed: int,
    logits_seed: int,
    size: int,
    temperature: float,
    top_k: int,
    top_p: float,
    penalty: float,
    sample: int,
    position: int,
) -> None:
    logits = make_logits(logits_seed, size)
    context = [0, 2, 2, size - 1]
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=penalty,
        seed=seed,
    )
    chances = warped(logits, params, context).double().softmax(-1).numpy()
    race = chances / draw_exponentials(seed, sample, position, size)
    assert draw(logits, params, sample, position, context).id == int(race.argmax())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.5, top_k=12, top_p=0.9),
    ],
)
def test_distribution(params: SamplingParams) -> None:
    """Over many positions the counts fit the probabilities (chi-square, 1 in 10,000)."""
    logits, n_draws = make_logits(1, 30, spread=1.2), 6000
    counts = Counter(draw(logits, params, 0, at, ()).id for at in range(n_draws))
    expected = warped(logits, params, [0]).double().softmax(-1).numpy() * n_draws
    assert all(expected[token] > 0 for token in counts)
    likely = [token for token in range(30) if expected[token] >= 5]
    square = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in likely)
    freedom = max(1, len(likely) - 1)
    assert square < freedom + 3.72 * (2 * freedom) ** 0.5 + 15


def test_draws_of_samples_positions_and_seeds_are_independent() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    drawn = {
        draw(logits, SamplingParams(seed=seed), sample, at, ()).id
        for seed in (0, 1, 2**64 - 1)
        for sample in range(5)
        for at in range(20)
    }
    assert len(drawn) > 240  # of 300 draws among 1000


def test_same_arguments_same_token() -> None:
    logits = make_logits(5)
    params = SamplingParams(seed=77, top_p=0.95)
    first = [draw(logits, params, 1, at, ()).id for at in range(50)]
    np.random.default_rng().random(100)
    torch.rand(100)
    assert [draw(logits, params, 1, at, ()).id for at in reversed(range(50))] == first[::-1]


def test_exponentials() -> None:
    drawn = draw_exponentials(3, 0, 9, 200_000)
    assert drawn.min() > 0
    assert abs(drawn.mean() - 1) < 0.01
    assert abs(drawn.var() - 1) < 0.03
    assert np.array_equal(drawn[:1000], draw_exponentials(3, 0, 9, 1000))


def test_greedy_is_the_lowest_of_the_best() -> None:
    logits = np.array([1.0, 5.0, 5.0, -2.0], dtype=np.float32)
    assert draw(logits, SamplingParams(temperature=0.0), 0, 0, ()).id == 1


def test_greedy_with_repetition_penalty() -> None:
    logits = np.array([4.0, 3.9, -1.0], dtype=np.float32)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    assert draw(logits, params, 0, 2, [0, 0, 2]).id == 1
    assert draw(logits, params, 0, 0, []).id == 0


def test_the_logits_are_left_alone() -> None:
    logits = make_logits(8)
    before = logits.copy()
    params = SamplingParams(repetition_penalty=2.0, top_k=5, top_p=0.5, logprobs=3)
    draw(logits, params, 0, 0, [1, 2, 3])
    assert np.array_equal(logits, before)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 1000),
    wanted=st.integers(0, 20),
    temperature=st.sampled_from([0.0, 0.7]),
    size=st.sampled_from([2, 20, 900]),
)
def test_logprobs_are_those_of_the_raw_logits(
    seed: int, wanted: int, temperature: float, size: int
) -> None:
    logits = make_logits(seed, size)
    params = SamplingParams(temperature=temperature, logprobs=wanted, repetition_penalty=1.2)
    drawn = draw(logits, params, 0, 0, [0, 1])
    expected = torch.from_numpy(logits).double().log_softmax(-1)
    assert drawn.logprob == pytest.approx(float(expected[drawn.id]), abs=1e-5)
    best = expected.topk(min(wanted, size))
    assert [token for token, _ in drawn.alternatives] == best.indices.tolist()
    assert [p for _, p in drawn.alternatives] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_no_logprobs_unless_asked_for() -> None:
    drawn = draw(make_logits(0), SamplingParams(), 0, 0, ())
    assert drawn.logprob is None
    assert drawn.alternatives == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    logits = make_logits(0)
    logits[17] = bad
    with pytest.raises(
        BadLogits, match="1 of the 200 logits at position 12 are not finite"
    ) as caught:
        draw(logits, SamplingParams(temperature=temperature), 0, 12, ())
    assert isinstance(caught.value, DvrtError)


def test_extremes() -> None:
    logits = np.full(500, -3.0e38, dtype=np.float32)
    logits[9] = 3.0e38
    for params in (SamplingParams(), SamplingParams(temperature=0.001), SamplingParams(top_p=1e-9)):
        assert draw(logits, params, 0, 0, ()).id == 9
