"""A place that loses its worker again and again is given up, and what does not need it goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from dvrt.virtual import run_virtual
from tests.runtime.crowd import at_rest, kill, living

OPTIONS = {"device": "null", "in_process": True, "max_deaths": 2, "null_step_ms": 20.0}
LONG = {"max_tokens": 100, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("degraded") / "tiny", "gpt2", n_layers=3)


def reasons(engine: Engine, subject: str, state: str) -> list[str]:
    records = engine.events()
    return [each.reason for each in records if (each.subject, each.state) == (subject, state)]


async def wear_out(engine: Engine, stage: int, role: str, times: int) -> None:
    """Kill whoever has this place, so many times."""
    for _ in range(times):
        async with asyncio.timeout(20):
            while not (names := holders(engine, stage, role)):
                await asyncio.sleep(0.01)
        kill(engine, names[0])
        await asyncio.sleep(0.1)


def holders(engine: Engine, stage: int | None, role: str) -> list[str]:
    there = living(engine)
    return [
        each.name
        for each in engine.status().workers
        if each.name in there and (each.stage, each.role) == (stage, role)
    ]


def test_without_prompt_stages_what_has_its_prompt_comes_to_its_end(model: Path) -> None:
    async def main() -> None:
        async with dvrt.launch(model, **OPTIONS, prompt_stages=1, token_stages=2) as engine:
            right = await engine.complete([1], **LONG)
            running = asyncio.create_task(engine.complete([1], **LONG, request_id="runs"))
            await asyncio.sleep(0.5)
            await wear_out(engine, 0, "prompt", 2)
            late = asyncio.create_task(engine.complete([5] * 90, **LONG, request_id="late"))
            await wear_out(engine, 0, "prompt", 1)
            with pytest.raises(dvrt.StageFailed, match="loss number 3 within 60 s"):
                await late
            status = engine.status()
            assert (status.state, engine.is_healthy()) == ("degraded", False)
            assert "loss number 3" in status.reason
            (record,) = reasons(engine, "pipeline 0", "degraded")
            assert record.endswith("; with it end 1 requests: late")
            with pytest.raises(dvrt.Unavailable, match="degraded: .*loss number 3"):
                await engine.complete([1])
            assert (await running).samples == right.samples
            await asyncio.sleep(0.01)
            assert engine.status().state == "failed"

    run_virtual(main())


def test_a_loss_on_the_other_side_is_then_the_end(model: Path) -> None:
    async def main() -> None:
        async with dvrt.launch(model, **OPTIONS, prompt_stages=1, token_stages=2) as engine:
            running = asyncio.create_task(engine.complete([1], **LONG, request_id="runs"))
            await asyncio.sleep(0.5)
            await wear_out(engine, 0, "prompt", 3)
            assert engine.status().state == "degraded"
            await wear_out(engine, 1, "token", 1)
            with pytest.raises(dvrt.StageFailed, match="another pipeline is given up"):
                await running
            assert engine.status().state == "failed"
            (record,) = reasons(engine, "cluster", "degraded")
            assert record.endswith("with it end 1 requests: runs")

    run_virtual(main())


def test_without_spares_all_goes_on(model: Path) -> None:
    async def main() -> None:
        async with dvrt.launch(model, **OPTIONS, stages=2, spares=1) as engine:
            await asyncio.sleep(1.0)
            await wear_out(engine, None, "spare", 3)
            await asyncio.sleep(1.0)
            assert (engine.status().state, engine.is_healthy()) == ("serving", True)
            assert len(living(engine)) == 2
            (record,) = reasons(engine, "spares", "degraded")
            assert "no more are hired" in record
            await engine.complete([1], max_tokens=5)
            await at_rest(engine)

    run_virtual(main())


def test_losses_of_different_places_do_not_add_up(model: Path) -> None:
    async def main() -> None:
        async with dvrt.launch(model, **OPTIONS, stages=3) as engine:
            for _ in range(2):
                for stage in range(3):
                    await wear_out(engine, stage, "stage", 1)
            await asyncio.sleep(2.0)
            assert (engine.status().state, engine.status().n_lost) == ("serving", 6)

    run_virtual(main())


def test_what_runs_is_named_when_nothing_can_go_on(model: Path, tmp_path: Path) -> None:
    """And with a journal the next launch goes on with it."""
    journal: dict[str, Any] = {"journal": str(tmp_path / "journal.db")}

    async def main() -> None:
        async with dvrt.launch(model, **OPTIONS, **journal, stages=2) as engine:
            right = await engine.complete([1], **LONG)
            runs = asyncio.create_task(engine.complete([1], **LONG, request_id="runs"))
            await asyncio.sleep(0.5)
            await wear_out(engine, 1, "stage", 3)
            with pytest.raises(dvrt.StageFailed, match="loss number 3"):
                await runs
            (record,) = reasons(engine, "cluster", "degraded")
            assert record.endswith("with it end 1 requests: runs")
        async with dvrt.launch(model, **OPTIONS, **journal, stages=2) as engine:
            tokens = [token.id async for token in engine.resume("runs")]
            assert tuple(tokens) == right.samples[0].token_ids

    run_virtual(main())
