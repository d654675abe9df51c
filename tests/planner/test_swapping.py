"""Appendix G's condition, on the examples worked out by hand."""

from __future__ import annotations

import pytest

from dvrt.errors import ConfigError
from dvrt.planner.swapping import SwapJudgement, judge_filling, judge_swapping

OPT_66B_ENTRY = 32 * 2 * 9216 * 2
"""Bytes of one position in half of OPT-66B's layers."""


def judge(prompt: int, tokens: int) -> SwapJudgement:
    return judge_swapping(
        step_s=0.035,
        batch_size=4,
        entry_bytes=OPT_66B_ENTRY,
        bandwidth=25e9,
        contexts=range(prompt + 1, prompt + tokens + 1),
    )


def test_long_contexts_cost_more_than_they_bring() -> None:
    found = judge(500, 500)
    assert not found.pays
    assert found.hidden_context == pytest.approx(185, abs=1)
    assert (found.swapped_s, found.plain_s) == (pytest.approx(70.8, rel=0.01), pytest.approx(35.0))
    assert "costs more than it brings for contexts of 501 to 1000 tokens" in str(found)


def test_short_ones_pay_up_to_twice() -> None:
    assert judge(0, 555).pays
    assert judge(0, 555).gain == pytest.approx(38.9 / 32.3, rel=0.01)
    assert judge(0, 100).gain == 2


@pytest.mark.parametrize("wrong", ["step_s", "bandwidth", "entry_bytes", "batch_size"])
def test_values_that_mean_nothing(wrong: str) -> None:
    given = {"step_s": 1.0, "batch_size": 1, "entry_bytes": 1, "bandwidth": 1.0}
    with pytest.raises(ConfigError, match=wrong):
        judge_swapping(**{**given, wrong: 0}, contexts=[1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="contexts"):
        judge_swapping(**given, contexts=[])  # type: ignore[arg-type]


@pytest.mark.parametrize("max_context", [1, 50, 184, 185, 186, 600, 5000])
def test_filling_a_context_is_the_sum_over_it(max_context: int) -> None:
    given = {"step_s": 0.035, "batch_size": 4, "entry_bytes": OPT_66B_ENTRY, "bandwidth": 25e9}
    summed = judge_swapping(**given, contexts=range(1, max_context + 1))  # type: ignore[arg-type]
    closed = judge_filling(max_context, **given)  # type: ignore[arg-type]
    assert closed.swapped_s == pytest.approx(summed.swapped_s)
    assert (closed.gain, closed.hidden_context, closed.last_context) == (
        pytest.approx(summed.gain),
        summed.hidden_context,
        max_context,
    )
    assert closed.pays == (max_context <= closed.paying_context)


def test_it_pays_up_to_the_context_that_is_named() -> None:
    longest = int(judge(0, 1).paying_context)
    assert 600 < longest < 800
    assert judge(0, longest - 1).pays
    assert not judge(0, longest + 2).pays
    with pytest.raises(ConfigError, match="contexts"):
        judge_filling(0, step_s=1.0, batch_size=1, entry_bytes=1, bandwidth=1.0)
