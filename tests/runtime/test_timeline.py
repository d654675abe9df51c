"""``--trace``: a cluster's time as lanes of stages, their copies, places and requests."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from tests.attack.traffic import Outcome
from tests.runtime.crowd import crowd, virtual

Lanes = dict[str, dict[str, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("timeline") / "model", "gpt2", n_layers=4)


def traced(model: Path, path: Path, **options: Any) -> Lanes:
    """The spans of a run, by process and lane."""

    async def work(engine: Engine) -> list[Outcome]:
        return await crowd(engine, range(12))

    assert all(outcome.is_whole for outcome in virtual(model, work, trace=str(path), **options))
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    lanes: Lanes = defaultdict(lambda: defaultdict(list))
    for event in events:
        if event["ph"] == "X":
            lanes[processes[event["pid"]]][names[event["tid"]]].append(event)
    return lanes


def test_stages_and_all_their_copies_have_lanes(model: Path, tmp_path: Path) -> None:
    lanes = traced(
        model,
        tmp_path / "trace.json",
        prompt_stages=1,
        token_stages=2,
        replicas=1,
        swap=True,
        swap_anyway=True,
    )
    prompt, token = "pipeline 0 stage 0", "pipeline 1 stage 0"
    assert {
        *(prompt, f"{prompt} ships to p1-s0", f"{prompt} ships to p1-s1", f"{prompt} replicas"),
        *(token, f"{token} copies in", f"{token} copies out", f"{token} replicas"),
    } <= lanes["stages"].keys()
    assert len(lanes["requests"]) == len(lanes["places"]) == 12


def test_prompts_ship_layer_by_layer(model: Path, tmp_path: Path) -> None:
    lanes = traced(model, tmp_path / "trace.json", prompt_stages=1, token_stages=2, replicas=0)
    shipped = lanes["stages"]["pipeline 0 stage 0 ships to p1-s0"]
    assert {" ".join(each["name"].split()[1:]) for each in shipped} == {
        "layers 0 to 0",
        "layers 1 to 1",
    }
    assert all(each["args"]["bytes"] > 0 for each in shipped)


def test_nothing_is_told_where_nobody_traces(model: Path) -> None:
    async def work(engine: Engine) -> list[Outcome]:
        engine._controller._chronicle.copied = refuse  # type: ignore[method-assign]
        return await crowd(engine, range(4))

    def refuse(message: object) -> None:
        raise AssertionError(f"{message} was told")

    assert all(each.is_whole for each in virtual(model, work, prompt_stages=1, token_stages=1))
