"""A whole cluster that swaps, under virtual time: the same tokens, its figures in the status."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.errors import ConfigError
from dvrt.models.tiny import write_tiny
from dvrt.virtual import run_virtual
from tests.attack.traffic import Outcome
from tests.runtime.crowd import crowd, kill, living, virtual
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
        "swap_anyway": True,
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


def test_a_budget_that_holds_everything_makes_swapping_a_waste(
    model: Path, expected: Answers
) -> None:
    """It is refused; a launch whose prompt side alone fits is not."""
    roomy = {"stages": 2, "microbatches": 3, "swap": True, "kv_memory": "1GB"}
    with pytest.raises(ConfigError, match="brings nothing and costs time.*there fits batch_size"):
        run_virtual(serve(model, **roomy))
    run_virtual(serve(model, **roomy, swap_anyway=True))
    split = {"prompt_stages": 2, "token_stages": 1, "microbatches": 4, "prompt_microbatches": 2}
    answers, status = run_virtual(serve(model, **split, swap=True, kv_memory="4MiB"))
    assert complete(answers) == expected
    assert [bool(worker.swap) for worker in status.workers] == [False, False, True]


async def launched(model: Path, bandwidth: int, **more: Any) -> tuple[dvrt.Status, list[str], str]:
    """What a launch on such a link says: status, warnings, metrics."""
    options: dict[str, Any] = {"device": "null", "in_process": True, "max_context": 96, **more}
    launch = dvrt.launch(model, stages=2, swap=True, swap_bandwidth=bandwidth, **options)
    async with launch as engine:
        await engine.complete([1, 2, 3], max_tokens=9, ignore_eos=True)
        warned = [record.reason for record in engine.events() if record.state == "warned"]
        return engine.status(), warned, engine.metrics.render().decode()


def test_a_slow_link_is_warned_of_and_a_hopeless_one_refused(model: Path) -> None:
    """A step of 5 ms, 8 rows of 24 bytes a token: i* is 1 at 38.4 kB/s, and the gain 4 i*/96."""
    status, warned, metrics = run_virtual(launched(model, 38_400 * 18))
    assert all(0.5 < worker.swap["gain"] < 1 for worker in status.workers)
    assert [worker.swap["paying_context"] for worker in status.workers] == [
        pytest.approx(67, abs=1)
    ] * 2
    assert len(warned) == 2
    assert all("swapping costs more than it brings" in each for each in warned)
    assert 'dvrt_swap_gain{role="stage",stage="1",worker="worker-1"} 0.7' in metrics
    slow = 38_400 * 10
    with pytest.raises(dvrt.StageFailed, match="costs more than it brings.*37 tokens.*max_context"):
        run_virtual(launched(model, slow))
    status, warned, _ = run_virtual(launched(model, slow, swap_anyway=True))
    assert len(warned) == 2
    assert all(worker.swap["gain"] < 0.5 for worker in status.workers)
    _, warned, _ = run_virtual(launched(model, 38_400 * 60))
    assert warned == []


def test_a_cluster_that_serves_is_not_ended_for_swapping_to_no_purpose(model: Path) -> None:
    """Neither by a change of the split nor by a worker that takes a dead one's place."""

    async def work(engine: Engine) -> list[str]:
        await engine.rebalance(stages=1)
        kill(engine, living(engine)[0])
        await asyncio.sleep(5.0)
        assert engine.status().state == "serving"
        return [record.subject for record in engine.events() if record.state == "warned"]

    slow = {"swap": True, "swap_bandwidth": 700_000, "null_step_ms": 1.5, "microbatches": 3}
    warned = virtual(model, work, stages=3, **slow)
    assert warned[3:] == ["pipeline 1 stage 0"] * 2


def test_the_metrics_show_memory_copies_and_waits(model: Path) -> None:
    async def work(engine: Engine) -> None:
        await crowd(engine, range(12))
        text, workers = engine.metrics.render().decode(), engine.status().workers
        for worker in workers:
            labels = f'role="stage",stage="{worker.stage}",worker="{worker.name}"'
            shown = {
                f"dvrt_swap_in_bytes_total{{{labels}}}": worker.swap["in_bytes"],
                f"dvrt_swap_out_bytes_total{{{labels}}}": worker.swap["out_bytes"],
                f"dvrt_swap_wait_seconds_total{{{labels}}}": worker.swap["waited_s"],
                f"dvrt_swap_hidden_context_tokens{{{labels}}}": worker.swap["hidden_context"],
                f'dvrt_kv_bytes{{memory="device",{labels}}}': worker.kv_bytes,
                f'dvrt_kv_bytes{{memory="host",{labels}}}': worker.swap["host_kv_bytes"],
            }
            for name, value in shown.items():
                assert f"{name} {float(value)}" in text
                assert value > 0

    virtual(model, work, stages=3, **SLOW_LINK)
