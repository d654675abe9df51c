"""A worker dies, the text goes on: whoever it is, whenever it is, and more than one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from tests.attack.traffic import Outcome
from tests.runtime.crowd import crowd, kill, living, virtual

SHAPES = [
    {"stages": 3},
    {"prompt_stages": 2, "token_stages": 2},
    {"stages": 2, "spares": 1},
    {"stages": 4, "replicas": 2},
    {"prompt_stages": 1, "token_stages": 3, "spares": 2},
    {"stages": 1},
    {"stages": 3, "replicas": 0},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("recovery") / "tiny", "gpt2", n_layers=5)


@pytest.fixture(scope="module")
def right(model: Path) -> list[Outcome]:
    """The answers when nothing happens."""
    return virtual(model, lambda engine: crowd(engine, range(40)), stages=2)


def with_deaths(
    seed: int, *, every_s: float, at_once: int = 1
) -> Callable[[Engine], Awaitable[list[Outcome]]]:
    """The crowd, while workers die at random, ``at_once`` of them at the same moment."""

    async def work(engine: Engine) -> list[Outcome]:
        rng = random.Random(seed)
        task = asyncio.create_task(crowd(engine, range(40)))
        while not task.done():
            await asyncio.wait([task], timeout=rng.expovariate(1 / every_s))
            names = living(engine)
            for name in rng.sample(names, min(at_once, len(names))) if not task.done() else ():
                kill(engine, name)
        await whole(engine)
        return await task

    return work


async def whole(engine: Engine) -> None:
    """Until nothing is missing any more."""
    async with asyncio.timeout(120):
        while engine.status().state != "serving":
            await asyncio.sleep(0.05)
    assert engine.is_healthy()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 9))]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_workers_die_at_random_and_no_token_changes(
    model: Path, right: list[Outcome], shape: dict[str, Any], seed: int
) -> None:
    assert virtual(model, with_deaths(seed, every_s=0.7), seed=seed, **shape) == right


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 9))]
)
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_two_die_at_once(
    model: Path, right: list[Outcome], shape: dict[str, Any], seed: int
) -> None:
    work = with_deaths(100 + seed, every_s=1.1, at_once=2)
    assert virtual(model, work, seed=seed, **shape) == right


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_deaths_faster_than_any_recovery(model: Path, right: list[Outcome], seed: int) -> None:
    """Replacements die while they load, are connected and get their logs back."""

    async def work(engine: Engine) -> list[Outcome]:
        rng = random.Random(seed)
        task = asyncio.create_task(crowd(engine, range(40)))
        for _ in range(40):
            await asyncio.sleep(rng.choice((0.0, 0.0001, 0.001, 0.01, 0.05)))
            names = living(engine)
            if names:
                kill(engine, rng.choice(names))
        await whole(engine)
        return await task

    assert virtual(model, work, seed=seed, stages=3, spares=seed % 2) == right


def test_only_what_was_not_copied_is_computed_again(model: Path) -> None:
    async def work(engine: Engine) -> tuple[float, float, list[str]]:
        task = asyncio.create_task(engine.complete([7] * 60, max_tokens=60, temperature=0.0))
        await asyncio.sleep(2.0)
        kill(engine, "worker-1")
        await task
        value = engine.metrics.value
        said = [f"{each.subject}: {each.state}" for each in engine.events()]
        return value("dvrt_recomputed_tokens"), value("dvrt_restored_tokens"), said

    recomputed, restored, said = virtual(model, work, stages=3, batch_size=1)
    assert restored > 60
    assert recomputed <= 2
    stage = "pipeline 0 stage 1"
    order = [f"{stage}: {state}" for state in ("lost", "loaded", "ready", "restored", "resumed")]
    assert [each for each in said if each.startswith(stage)] == order
    assert "worker-1: lost" in said and "worker-1.2: ready" in said


def test_a_spare_takes_over_and_is_replaced(model: Path) -> None:
    async def work(engine: Engine) -> None:
        before = {each.name: each.role for each in engine.status().workers}
        assert before == {"worker-0": "stage", "worker-1": "stage", "worker-2": "spare"}
        kill(engine, "worker-1")
        await whole_again(engine)
        roles = {e.name: e.role for e in engine.status().workers if e.state != "lost"}
        assert (roles["worker-0"], roles["worker-2"]) == ("stage", "stage")
        await asyncio.sleep(1.0)
        spares = [each for each in engine.status().workers if each.role == "spare"]
        assert [each.state for each in spares if each.state != "lost"] == ["idle"]
        kill(engine, spares[0].name)
        await asyncio.sleep(1.0)
        assert engine.is_healthy()

    virtual(model, work, stages=2, spares=1)


async def whole_again(engine: Engine) -> None:
    """Until a loss was noticed and mended."""
    async with asyncio.timeout(5):
        while not engine.status().n_lost:
            await asyncio.sleep(0.005)
    await whole(engine)


def test_a_stage_that_dies_again_and_again_is_given_up(model: Path) -> None:
    async def work(engine: Engine) -> None:
        task = asyncio.create_task(engine.complete([1], max_tokens=100, temperature=0.0))
        for _ in range(4):
            await asyncio.sleep(0.3)
            kill(engine, living(engine)[-1])
        with pytest.raises(dvrt.StageFailed, match="loss number 4 within 60 s"):
            await task
        status = engine.status()
        assert (status.state, engine.is_healthy()) == ("failed", False)
        assert "loss number 4" in status.reason
        with pytest.raises(dvrt.Unavailable, match="failed: .*loss number 4"):
            await engine.complete([1])

    async def main() -> None:
        options = {"device": "null", "in_process": True, "max_deaths": 3, "null_step_ms": 20.0}
        async with dvrt.launch(model, stages=2, **options) as engine:
            await work(engine)

    from dvrt.virtual import run_virtual

    run_virtual(main())


def test_a_worker_that_dies_at_start_is_started_again(model: Path) -> None:
    async def main() -> tuple[int, ...]:
        killed: list[str] = []

        def on_progress(worker: dvrt.WorkerStatus) -> None:
            if worker.state == "loading" and worker.stage == 1 and len(killed) < 3:
                killed.append(worker.name)
                os.kill(worker.pid, signal.SIGKILL)

        async with dvrt.launch(model, stages=2, device="null", on_progress=on_progress) as engine:
            assert killed == ["worker-1", "worker-1.2", "worker-1.3"]
            return (await engine.complete([5], max_tokens=5, ignore_eos=True)).token_ids

    assert len(asyncio.run(main())) == 5


REQUESTS: list[dict[str, Any]] = [
    {"prompt": [i] * (5 + 9 * i), "max_tokens": 60, "seed": i, "temperature": 0.8 * (i % 2)}
    for i in range(6)
]


async def disturbed(
    model: Path, disturb: Callable[[Engine], Awaitable[None]], **options: Any
) -> list[tuple[int, ...]]:
    """Real processes: the answers to REQUESTS while something happens to them."""
    chosen = {"max_context": 192, "batch_size": 4, **options}
    async with dvrt.launch(model, **chosen) as engine:
        loop = asyncio.get_running_loop()
        first = loop.create_future()

        async def answer(request: dict[str, Any]) -> tuple[int, ...]:
            ids = []
            prompt = request["prompt"]
            rest = {key: value for key, value in request.items() if key != "prompt"}
            async for token in engine.generate(prompt, ignore_eos=True, **rest):
                ids.append(token.id)
                if len(ids) == 10 and not first.done():
                    first.set_result(None)
            return tuple(ids)

        tasks = [asyncio.create_task(answer(request)) for request in REQUESTS]
        await first
        await disturb(engine)
        return await asyncio.gather(*tasks)


async def nothing(engine: Engine) -> None:
    pass


@pytest.mark.parametrize("spares", [0, 1])
def test_a_process_is_killed_and_the_text_goes_on(model: Path, spares: int) -> None:
    async def murder(engine: Engine) -> None:
        survivors = {each.pid for each in engine.status().workers if each.stage != 1}
        victim = next(each for each in engine.status().workers if each.stage == 1)
        os.kill(victim.pid, signal.SIGKILL)
        await whole_again(engine)
        pids = {each.pid for each in engine.status().workers if each.state == "ready"}
        assert survivors & pids and victim.pid not in pids

    async def main() -> None:
        right = await disturbed(model, nothing, stages=3)
        assert await disturbed(model, murder, stages=3, spares=spares) == right

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_stopped_process_is_noticed_and_shut_out_when_it_goes_on(model: Path) -> None:
    async def stop(engine: Engine) -> None:
        victim = next(each for each in engine.status().workers if each.stage == 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        os.kill(victim.pid, signal.SIGSTOP)
        while not engine.status().n_lost:
            await asyncio.sleep(0.01)
        assert loop.time() - began < 1.5
        assert any("nothing was heard" in each.reason for each in engine.events())
        await whole(engine)

    async def main() -> None:
        right = await disturbed(model, nothing, stages=3)
        assert await disturbed(model, stop, stages=3, spares=1) == right

    asyncio.run(asyncio.wait_for(main(), 60))
