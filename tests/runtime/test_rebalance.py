"""The split changes while requests run: none is lost, no token is wrong."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from tests.attack.traffic import Outcome, ask, wish
from tests.runtime.crowd import BRISK, crowd, kill, living, virtual


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("rebalance") / "tiny", "gpt2", n_layers=5)


@pytest.fixture(scope="module")
def right(model: Path) -> list[Outcome]:
    return virtual(model, lambda engine: crowd(engine, range(60), spread_s=15.0), stages=2)


def random_split(rng: random.Random) -> dict[str, int]:
    if rng.random() < 0.25:
        return {"stages": rng.randint(1, 4)}
    return {"prompt_stages": rng.randint(1, 4), "token_stages": rng.randint(1, 4)}


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_twenty_changes_in_a_row_under_load(model: Path, right: list[Outcome], seed: int) -> None:
    async def work(engine: Engine) -> list[Outcome]:
        rng = random.Random(seed)
        task = asyncio.create_task(crowd(engine, range(60), spread_s=15.0))
        for _ in range(20):
            split = random_split(rng)
            await engine.rebalance(**split)
            assert sorted(len(each.stages) for each in engine.status().pipelines) == sorted(
                split.values()
            )
            await asyncio.sleep(rng.random() * 0.5)
        return await task

    assert virtual(model, work, seed=seed, prompt_stages=1, token_stages=2) == right


@pytest.mark.parametrize(
    ("n_changes", "swap"), [(3, True), pytest.param(20, False, marks=pytest.mark.slow)], ids=str
)
def test_changes_of_real_processes_under_load(
    model: Path, right: list[Outcome], n_changes: int, swap: bool
) -> None:
    """Each client asks again and again until the last change is done."""

    async def main() -> None:
        rng = random.Random(n_changes)
        options = {**BRISK, "null_step_ms": 1.0, "swap": swap, "prompt_stages": 1}
        async with dvrt.launch(model, device="null", token_stages=2, **options) as engine:
            is_over = asyncio.Event()

            async def client(number: int) -> int:
                n_asked = 0
                while not (is_over.is_set() and n_asked):
                    wished = {**wish(number), "request_id": f"r{number}-{n_asked}"}
                    assert await ask(engine, wished) == right[number]
                    n_asked += 1
                return n_asked

            clients = asyncio.gather(*(client(number) for number in range(12)))
            for _ in range(n_changes):
                split = random_split(rng)
                await engine.rebalance(**split)
                found = [len(each.stages) for each in engine.status().pipelines]
                assert found == list(split.values())
                await asyncio.sleep(rng.random() * 0.1)
            is_over.set()
            assert sum(await clients) > 12
            engine._controller.check_integrity()

    asyncio.run(asyncio.wait_for(main(), 100))


def test_workers_that_are_left_over_wait_as_spares(model: Path) -> None:
    async def work(engine: Engine) -> None:
        await engine.rebalance(prompt_stages=1, token_stages=1)
        roles = [each.role for each in engine.status().workers]
        assert roles == ["prompt", "token", "spare", "spare"]
        await engine.rebalance(prompt_stages=3, token_stages=3)
        roles = [each.role for each in engine.status().workers]
        assert roles == ["prompt"] * 3 + ["token"] * 3
        assert [each.id for each in engine.status().pipelines] == [4, 5]
        done = await engine.complete([1, 2], max_tokens=5, ignore_eos=True)
        assert len(done.token_ids) == 5

    virtual(model, work, prompt_stages=2, token_stages=2)


def test_one_change_at_a_time_and_only_those_that_can_be(model: Path) -> None:
    async def work(engine: Engine) -> None:
        change = asyncio.create_task(engine.rebalance(prompt_stages=2, token_stages=1))
        while not any(each.state == "rebalancing" for each in engine.events()):
            await asyncio.sleep(0)
        with pytest.raises(dvrt.Unavailable, match="being changed already"):
            await engine.rebalance(prompt_stages=1, token_stages=1)
        await change
        with pytest.raises(dvrt.ConfigError, match="only 5 layers"):
            await engine.rebalance(prompt_stages=6, token_stages=1)
        wrong: list[dict[str, Any]] = [
            {},
            {"prompt_stages": 1},
            {"stages": 1, "token_stages": 1},
            {"stages": 0},
            {"stages": "2"},
        ]
        for split in wrong:
            with pytest.raises(dvrt.ConfigError, match="stages"):
                await engine.rebalance(**split)
        assert engine.is_healthy()

    virtual(model, work, prompt_stages=1, token_stages=1)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))]
)
def test_workers_die_while_the_split_changes(model: Path, right: list[Outcome], seed: int) -> None:
    """Before the new stages are ready all is undone, later it is mended; both are seen here."""

    async def work(engine: Engine) -> tuple[list[Outcome], int, int]:
        rng = random.Random(seed)
        task = asyncio.create_task(crowd(engine, range(60), spread_s=15.0))
        n_changed = n_undone = 0
        for _ in range(12):
            change = asyncio.create_task(engine.rebalance(**random_split(rng)))
            await asyncio.sleep(rng.choice((0.0, 0.001, 0.02, 0.1, 0.3)))
            kill(engine, rng.choice(living(engine)))
            try:
                await change
                n_changed += 1
            except (dvrt.StageFailed, dvrt.Unavailable):
                n_undone += 1
            while engine.status().state != "serving":
                await asyncio.sleep(0.01)
        return await task, n_changed, n_undone

    outcomes, n_changed, n_undone = virtual(model, work, seed=seed, stages=2, spares=1)
    assert outcomes == right
    assert n_changed and n_undone
