"""Workloads: traces, distributions, their moments, and input that is none."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from dvrt.errors import ConfigError
from dvrt.planner.workload import (
    Workload,
    fixed_workload,
    lognormal_workload,
    open_workload,
    read_workload,
)


def test_moments_count_every_token_step() -> None:
    workload = Workload(lengths=((10, 1), (20, 3)))
    contexts = [11, 21, 22, 23]
    assert workload.mean_context == mean(contexts)
    assert (workload.mean_prompt, workload.mean_output) == (15, 2)
    assert workload.mean_square_prompt == 250
    assert (workload.longest_context, workload.longest_prompt) == (23, 20)


def test_context_quantiles_follow_the_tokens() -> None:
    """Nine tenths of the tokens come from the long request, whose contexts start at 1000."""
    workload = Workload(lengths=((100, 100), (1000, 900)))
    below = sum(context < 1000 for context in workload.contexts) / len(workload.contexts)
    assert below == pytest.approx(0.1, abs=0.03)
    assert list(workload.contexts) == sorted(workload.contexts)
    assert mean(workload.contexts) == pytest.approx(workload.mean_context, rel=0.02)


def test_a_distribution_is_the_same_everywhere() -> None:
    one = lognormal_workload(1000, 210, prompt_cv=0.5, clip=(2, 1000))
    assert one == lognormal_workload(1000, 210, prompt_cv=0.5, clip=(2, 1000))
    assert one.mean_prompt == pytest.approx(1000, rel=0.02)
    assert one.mean_output == pytest.approx(206, abs=1)
    assert min(output for _, output in one.lengths) >= 2
    assert max(output for _, output in one.lengths) <= 1000


def test_outputs_are_clipped_only_where_it_is_asked_for() -> None:
    """A mean of 5000 stays one, and long tails stay long."""
    assert open_workload("output=5000,cv=0.5").mean_output == pytest.approx(5000, rel=0.02)
    assert max(output for _, output in open_workload("output=210,cv=1").lengths) > 1500
    assert open_workload("output=210,cv=1,longest=1000").mean_output == pytest.approx(206, abs=1)


def test_text_forms() -> None:
    assert open_workload("prompt=500,output=20") == fixed_workload(500, 20)
    assert open_workload("output=20,rate=0.5").rate_per_s == 0.5
    assert open_workload("output=210,cv=1").lengths == lognormal_workload(1000, 210).lengths
    clipped = lognormal_workload(1000, 210, clip=(2, 1000))
    assert open_workload("output=210,cv=1,longest=1000").lengths == clipped.lengths


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt=500", "output="),
        ("outputs=3", "outputs"),
        ("output=many", "not a number"),
        ("output=10,rate=-1", "rate"),
        ("output=10,rate=0", "rate"),
        ("output=10,cv=-1", "variation"),
        ("output=-5,cv=1", "mean length"),
        ("output=20,cv=1,longest=1", "longest=1"),
        ("output=20,cv=1,longest=9.5", "longest=9.5"),
        ("output=20,longest=10", "longer than"),
        ("output=nan", "not a number"),
        ("output=0", "at least 1"),
        ("nowhere.json", "No such file"),
    ],
)
def test_text_that_is_no_workload(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_workload(text)


def test_a_trace_with_arrivals_has_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("[[10, 5, 0.0], [20, 5, 2.0], [30, 5, 4]]")
    workload = read_workload(path)
    assert workload.lengths == ((10, 5), (20, 5), (30, 5))
    assert workload.rate_per_s == 0.5


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "must be a list"),
        ({}, "must be a list"),
        ([[10, 5], [10]], "item 1"),
        ([[10, 5], [10, -5]], "item 1: output"),
        ([[0, 5]], "item 0: prompt"),
        ([[10, 5.5]], "item 0: output"),
        ([[10, 5, -1.0]], "arrival_s"),
        ([[10, 5, "now"]], "arrival_s"),
        ([[10, True]], "output"),
        ([10, 5], "item 0"),
    ],
)
def test_bad_traces_name_the_item(tmp_path: Path, items: object, says: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(items))
    with pytest.raises(ConfigError, match=says):
        read_workload(path)
