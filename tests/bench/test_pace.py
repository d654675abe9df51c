"""The pace of a run: what its steps took over what they were thought to take, stage by stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.bench import pace
from dvrt.bench.pace import Pace, at_pace, paces
from dvrt.bench.stage_spans import StageSpan
from dvrt.models.null_timing import NullTiming
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.deploy import Setup, deploy_times

TIMING = NullTiming(decode_s=0.01, decode_row_s=0.001, chunk_s=0.02, prompt_token_s=0.001)
REQUESTS = [Arrival(0.0, 64, 20), Arrival(1.0, 64, 20)]


def span(stage: int, rows: int, chunks: int, factor: tuple[float, float]) -> StageSpan:
    decode_s = TIMING.decode_step_s([0] * rows)
    chunk_s = chunks * TIMING.chunk_step_s(0, 64)
    seconds = factor[0] * decode_s + factor[1] * chunk_s
    return StageSpan(stage=stage, rows=rows, chunks=chunks, seconds=seconds)


def run(monkeypatch: pytest.MonkeyPatch, spans: dict[int, list[StageSpan]]) -> None:
    monkeypatch.setattr(pace, "read_spans", lambda trace, *, pipeline: spans.get(pipeline, []))


def test_each_stage_has_its_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(4, 0), (1, 0), (0, 1), (2, 2)]
    factors = [(1.5, 1.2), (0.8, 2.0)]
    run(monkeypatch, {0: [span(i, *step, factors[i]) for step in steps for i in (0, 1)]})
    deployment = deploy_times(Setup(stages=2, batch=4), TIMING)
    [found] = paces(deployment, REQUESTS, Path("unread"))
    assert [(each.token, each.prompt) for each in found] == [pytest.approx(f) for f in factors]
    slow, fast = at_pace(deployment, [found]).tokens.stages
    assert slow.timing.decode_s == pytest.approx(1.5 * TIMING.decode_s)
    assert fast.timing.chunk_step_s(0, 64) == pytest.approx(2 * TIMING.chunk_step_s(0, 64))


def test_prompts_are_the_first_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, {0: [span(0, 0, 1, (1.0, 3.0))], 1: [span(0, 2, 0, (2.0, 1.0))]})
    deployment = deploy_times(Setup(stages=1, prompt_stages=1, batch=4), TIMING)
    found = paces(deployment, REQUESTS, Path("unread"))
    assert found == [[Pace(prompt=pytest.approx(3.0))], [Pace(token=pytest.approx(2.0))]]
    paced = at_pace(deployment, found)
    assert paced.prompts is not None
    assert paced.prompts.stages[0].timing == TIMING.scaled(prompt=found[0][0].prompt)
    assert paced.tokens.stages[0].timing == TIMING.scaled(token=found[1][0].token)


def test_a_stage_without_steps_keeps_its_times(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, {})
    deployment = deploy_times(Setup(stages=2, batch=4), TIMING)
    assert at_pace(deployment, paces(deployment, REQUESTS, Path("unread"))) == deployment
