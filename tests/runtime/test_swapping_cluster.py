"""A whole cluster that swaps, under virtual time: the same tokens, its figures in the status."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.actors.engine import Engine
from dvrt.errors import ConfigError
from dvrt.models.tiny import write_tiny
from dvrt.virtual import run_virtual
from tests.attack.traffic import Outcome
from tests.runtime.crowd import crowd, virtual
from tests.runtime.test_recovery import with_deaths

SLOW_LINK = {"swap": True, "device_slots": 2, "swap_bandwidth": 200_000}
SHAPES = [
    {"stages": 3},
    {"stages": 4, "replicas": 2},
    {"prompt_stages": 2, "token_stages": 3, "spares": 1},
    {"stages": 3, "replicas": 0},
]

Answers = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("swapping") / "tiny", "gpt2", n_layers=6)


async def serve(model: Path, **options: Any) -> tuple[Answers, dvrt.Status]:
    """Mixed lengths, several samples, early ends, clients that leave; greedy and seeded."""
    fixed = {"device": "null", "null_step_ms": 5.0, "in_process": True, "chunk_tokens": 16}
    async with dvrt.launch(model, batch_size=3, max_context=96, **fixed, **options) as engine:

        async def client(i: int) -> tuple[str, tuple[int, ...]]:
            rng = random.Random(i)
            await asyncio.sleep(rng.random())
            leaves_at = rng.choice((None, None, None, 4))
            prompt = [rng.randrange(300) for _ in range(rng.randint(1, 50))]
            ids: list[int] = []
            stream = engine.generate(
                prompt,
                max_tokens=rng.randint(1, 40),
                temperature=rng.choice((0.0, 0.9)),
                seed=i,
                n=rng.choice((1, 1, 2)),
                stop_ids=[rng.randrange(300) for _ in range(3)],
                request_id=f"r{i}",
            )
            async for token in stream:
                ids.append((token.sample << 32) | (token.id + 1))
                if len(ids) == leaves_at:
                    break
            await stream.aclose()
            return f"r{i}", tuple(sorted(ids))

        answers = dict(await asyncio.gather(*(client(i) for i in range(24))))
        return answers, engine.status()


def complete(answers: Answers) -> Answers:
    """Of clients that stay; who leaves gets as many tokens as came first."""
    return {name: ids for name, ids in answers.items() if len(ids) != 4}


@pytest.fixture(scope="module")
def expected(model: Path) -> Answers:
    return complete(run_virtual(serve(model, stages=1))[0])


@pytest.mark.parametrize(
    ("stages", "microbatches", "device_slots"),
    [(1, 2, 1), (1, 3, 2), (2, 3, 1), (2, 3, 2), (3, 4, 2), (4, 4, 2), (5, 5, 3), (5, 6, 2)],
)
def test_tokens_are_those_without_swapping(
    model: Path, expected: Answers, stages: int, microbatches: int, device_slots: int
) -> None:
    options = {
        "stages": stages,
        "microbatches": microbatches,
        "swap": True,
        "device_slots": device_slots,
        "swap_bandwidth": 200_000,
    }
    answers, status = run_virtual(serve(model, **options), seed=stages)
    assert complete(answers) == expected
    for worker in status.workers:
        assert worker.swap["host_kv_bytes"] * device_slots == worker.kv_bytes * microbatches
        assert worker.swap["in_bytes"] > 0 < worker.swap["out_bytes"]


@pytest.mark.parametrize(("prompts", "tokens"), [(1, 2), (2, 3)])
def test_with_disaggregation(model: Path, expected: Answers, prompts: int, tokens: int) -> None:
    options = {
        "prompt_stages": prompts,
        "token_stages": tokens,
        "swap": True,
        "swap_bandwidth": 500_000,
    }
    answers, _ = run_virtual(serve(model, **options), seed=5)
    assert complete(answers) == expected


@pytest.fixture(scope="module")
def right(model: Path) -> list[Outcome]:
    return virtual(model, lambda engine: crowd(engine, range(40)), stages=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_workers_die_and_logs_come_back_to_stages_that_swap(
    model: Path, right: list[Outcome], shape: dict[str, Any]
) -> None:
    work = with_deaths(5, every_s=0.7)
    assert virtual(model, work, seed=5, **SLOW_LINK, **shape) == right


def test_the_split_changes_while_stages_swap(model: Path, right: list[Outcome]) -> None:
    async def work(engine: Engine) -> list[Outcome]:
        task = asyncio.create_task(crowd(engine, range(40)))
        for split in ({"stages": 3}, {"prompt_stages": 2, "token_stages": 3}, {"stages": 2}):
            await asyncio.sleep(0.4)
            await engine.rebalance(**split)
        return await task

    assert virtual(model, work, stages=2, **SLOW_LINK) == right


async def test_a_model_that_computes_while_threads_copy(model: Path) -> None:
    async def answers(**options: Any) -> list[tuple[int, ...]]:
        launch = dvrt.launch(
            model, stages=2, device="cpu", in_process=True, max_context=128, **options
        )
        async with launch as engine:
            asks = (
                engine.complete(
                    [(i * 7 + j) % 300 for j in range(1 + 9 * i)],
                    max_tokens=12,
                    temperature=0.0 if i % 2 else 0.8,
                    seed=i,
                )
                for i in range(9)
            )
            return [answer.token_ids for answer in await asyncio.gather(*asks)]

    plain = await answers(batch_size=4, microbatches=3)
    assert await answers(batch_size=4, microbatches=3, swap=True) == plain
    shape = {"batch_size": 2, "microbatches": 5}
    assert await answers(**shape, swap=True, device_slots=1, swap_bandwidth=10**9) == plain


def test_nothing_is_swapped_when_all_fit(model: Path, expected: Answers) -> None:
    answers, status = run_virtual(serve(model, stages=1, microbatches=2, swap=True, device_slots=2))
    assert complete(answers) == expected
    assert not status.workers[0].swap


def test_a_budget_that_is_too_small_says_what_fits(model: Path) -> None:
    with pytest.raises(
        ConfigError, match="With swap and device_slots 2 there fit batch_size 2 or max_context 64"
    ):
        run_virtual(serve(model, stages=2, microbatches=6, kv_memory=1_200_000))


def test_a_slow_link_is_warned_of(model: Path) -> None:
    async def main() -> list[str]:
        options: dict[str, Any] = {"device": "null", "in_process": True, "max_context": 96}
        launch = dvrt.launch(model, stages=2, swap=True, swap_bandwidth=10_000, **options)
        async with launch as engine:
            assert all(worker.swap["gain"] < 1 for worker in engine.status().workers)
            return [record.reason for record in engine.events() if record.state == "warned"]

    warnings = run_virtual(main())
    assert len(warnings) == 2
    assert all("swapping costs more than it brings" in each for each in warnings)
