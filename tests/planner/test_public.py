"""The public planner's answers and errors, case by case, and its quirks."""

from __future__ import annotations

import pytest

from dvrt.errors import ConfigError
from dvrt.planner.public import PublicInput, PublicPlannerError, answer, parse_public_input
from tests.planner.cases import CASES, case

PARTITIONING = "AssertionError: Cannot find a valid partitioning!"


@pytest.mark.parametrize(
    ("letter", "split", "least", "real"),
    [
        ("H", (1, 3), (1, 1), 2.667),
        ("J", (3, 4), (3, 3), 3.5),
        ("K", (2, 4), (2, 2), 3.892),
        ("E", (4, 8), (3, 3), 7.742),
        ("M", (4, 4), (1, 1), 4.0),
    ],
)
def test_answers(letter: str, split: tuple[int, int], least: tuple[int, int], real: float) -> None:
    given = answer(CASES[letter])
    assert (given.prompt_machines, given.token_machines) == split
    assert (given.min_prompt_machines, given.min_token_machines) == least
    assert given.real_token_machines == pytest.approx(real, abs=5e-4)
    assert given.lines() == (
        f"Num machines for prompt: {split[0]}",
        f"Num machines for token: {split[1]}",
    )


@pytest.mark.parametrize(
    ("letter", "error"),
    [("B", PARTITIONING), ("I", PARTITIONING), ("L", PARTITIONING), ("G", "AssertionError")],
)
def test_errors(letter: str, error: str) -> None:
    with pytest.raises(PublicPlannerError) as failed:
        answer(CASES[letter])
    assert failed.value.public_error == error


def test_intermediates_of_case_h() -> None:
    given = answer(CASES["H"])
    assert given.layer_weights_gb == pytest.approx(2.0384, abs=5e-5)
    assert given.prompt_kv_gb == pytest.approx(0.29491, abs=5e-6)
    assert given.microbatch_kv_gb == pytest.approx(0.35389, abs=5e-6)
    assert given.token_layers == 67


def test_too_few_machines_cannot_fit_the_model() -> None:
    given = case(num_layers=4, layer_size=20_000_000_000, memory_per_gpu=100, attention_size=8)
    with pytest.raises(PublicPlannerError) as failed:
        answer(given)
    assert failed.value.public_error == "AssertionError: Cannot fit the model!"


def test_a_layer_larger_than_memory_divides_by_zero() -> None:
    with pytest.raises(PublicPlannerError) as failed:
        answer(case(num_layers=4, layer_size=10**12, memory_per_gpu=100, attention_size=8))
    assert failed.value.public_error.startswith("ZeroDivisionError")


def test_far_too_much_kv_passes_for_none_at_all() -> None:
    """A count below minus the layers rounds to zero machines, which the public planner accepts."""
    given = case(
        num_layers=100,
        layer_size=5000,
        attention_size=26_000,
        memory_per_gpu=80,
        num_machines=5,
        prompt_time=1000,
    )
    found = answer(given)
    assert found.token_layers < -100
    assert (found.min_token_machines, found.token_machines) == (0, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_machines": 0},
        {"prompt_time": -1},
        {"token_time": 1.5},
        {"prompt_stream_overhead": float("nan")},
        {"fp_size": True},
    ],
)
def test_arguments_that_cannot_be_meant(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PublicInput(**wrong)


def test_arguments_as_text() -> None:
    assert parse_public_input("--num-machines=4,prompt_stream_overhead=1.5") == PublicInput(
        num_machines=4, prompt_stream_overhead=1.5
    )
    with pytest.raises(ConfigError, match="machines_total"):
        parse_public_input("machines_total=4")
    with pytest.raises(ConfigError, match="many"):
        parse_public_input("num_machines=many")
