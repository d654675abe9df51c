"""Equations 1 to 6 against the worked numbers of the paper's planner and against each other."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.planner import equations as eq

H = {"prompt_time": 1700.0, "token_time": 17.0, "tokens": 200}
times = st.floats(0.01, 1e5)


def test_case_h() -> None:
    assert eq.colocated_inverse_throughput(4, **H) == pytest.approx(6362.25)
    assert eq.ideal_disaggregated_inverse_throughput(**H) == 5100
    assert eq.ideal_token_machines(4, **H) == pytest.approx(8 / 3)


@pytest.mark.parametrize(
    ("prompt_machines", "prompt_s", "token_s"),
    [(1, 6800.0, 4533.3333), (2, 3400.0, 6800.0), (3, 2266.6667, 13600.0)],
)
def test_splits_of_case_h(prompt_machines: int, prompt_s: float, token_s: float) -> None:
    ip = eq.prompt_inverse_throughput(4, prompt_machines, prompt_time=1700.0)
    it = eq.token_inverse_throughput(4, 4 - prompt_machines, token_time=17.0, tokens=200)
    assert (ip, it) == (pytest.approx(prompt_s), pytest.approx(token_s))


def test_memory_of_case_h() -> None:
    weights, prompt_kv, microbatch_kv = 2.0384, 0.29491, 0.35389
    held = eq.token_layers_per_machine(64, 160, layer_weights=weights, microbatch_kv=microbatch_kv)
    assert held == 67
    assert eq.min_token_machines(64, 160, layer_weights=weights, microbatch_kv=microbatch_kv) == 1
    assert eq.min_prompt_machines(64, 160, layer_weights=weights, prompt_kv=prompt_kv) == 1


def test_no_number_of_machines_holds_too_much_kv() -> None:
    assert eq.min_token_machines(10, 16, layer_weights=1, microbatch_kv=2) is None
    assert eq.min_prompt_machines(10, 16, layer_weights=10, prompt_kv=7) is None


def test_the_bubble_of_the_paper() -> None:
    bubble = eq.colocated_inverse_throughput(4, **H) - 1700 - 200 * 17
    assert bubble == pytest.approx(1262.25)


@given(machines=st.integers(2, 64), y=times, t=times, tokens=st.integers(1, 2000))
def test_equations_5_and_6_balance_both_sides(
    machines: int, y: float, t: float, tokens: int
) -> None:
    sides = {"prompt_time": y, "token_time": t, "tokens": tokens}
    prompt = eq.ideal_prompt_machines(machines, **sides)
    token = eq.ideal_token_machines(machines, **sides)
    assert prompt + token == pytest.approx(machines)
    ideal = eq.ideal_disaggregated_inverse_throughput(**sides)
    assert machines * y / prompt == pytest.approx(ideal)
    assert tokens * machines * t / token == pytest.approx(ideal)


@given(
    machines=st.integers(2, 64),
    y=times,
    t=times,
    tokens=st.integers(1, 2000),
    m=st.floats(1, 1.999),
)
def test_equation_4_is_equation_3_compared(
    machines: int, y: float, t: float, tokens: int, m: float
) -> None:
    apart = m * y + tokens * t
    together = eq.colocated_inverse_throughput(machines, prompt_time=y, token_time=t, tokens=tokens)
    if math.isclose(apart, together, rel_tol=1e-9):
        return
    gains = eq.disaggregation_gains(machines, prompt_time=y, token_time=t, stream_overhead=m)
    assert gains == (apart < together)


def test_no_ratio_is_enough_when_streaming_costs_too_much() -> None:
    assert eq.gain_threshold(4, 1.75) is None
    assert eq.gain_threshold(4, 1.0) == 1.0
    assert not eq.disaggregation_gains(4, prompt_time=1e9, token_time=1, stream_overhead=1.8)


@pytest.mark.parametrize(
    ("kv", "batch", "step_s", "prompt", "tokens", "swapped_s", "pays"),
    [
        (2.359296e6 / 2, 4, 0.035, 500, 500, 70.8, False),
        (2.359296e6 / 2, 4, 0.035, 0, 555, 32.3, True),
        (4.01408e6 / 5, 2, 0.040, 500, 500, 24.6, True),
    ],
)
def test_swapping_examples(
    kv: float, batch: int, step_s: float, prompt: int, tokens: int, swapped_s: float, pays: bool
) -> None:
    transfers = [
        eq.transfer_time(i, batch=batch, token_kv=kv, bandwidth=25e9)
        for i in range(prompt + 1, prompt + tokens + 1)
    ]
    assert eq.swapped_decode_time(step_s, transfers) == pytest.approx(swapped_s, abs=0.06)
    assert eq.swapping_gains(step_s, transfers) is pays


def test_hidden_contexts_of_the_examples() -> None:
    opt = eq.hidden_context(0.035, batch=4, token_kv=2.359296e6 / 2, bandwidth=25e9)
    bloom = eq.hidden_context(0.040, batch=2, token_kv=4.01408e6 / 5, bandwidth=25e9)
    assert (int(opt), round(bloom)) == (185, 623)
