"""Prompts and tokens in pipelines of their own: the tokens are those of one pipeline for both."""

from __future__ import annotations

import asyncio
import random
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from tests.attack.traffic import Outcome, ask, wish
from tests.runtime.crowd import crowd, virtual

SPLITS = list(product(range(1, 5), repeat=2))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("disaggregated")

    @cache
    def make(family: str, n_layers: int) -> Path:
        return write_tiny(root / f"{family}-{n_layers}", family, n_layers=n_layers)

    return make


@pytest.fixture(scope="module")
def right(models: Any) -> list[Outcome]:
    """The answers of one pipeline for both."""
    return virtual(models("gpt2", 5), lambda engine: crowd(engine, range(40)), stages=2)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_split_gives_the_same_tokens(
    models: Any, right: list[Outcome], split: tuple[int, int]
) -> None:
    prompt, token = split
    n_layers = 5 + (prompt + token) % 3
    found = virtual(
        models("gpt2", n_layers),
        lambda engine: crowd(engine, range(40)),
        seed=10 * prompt + token,
        prompt_stages=prompt,
        token_stages=token,
        prompt_batch_size=1 + token % 3,
    )
    if n_layers != 5:
        right = virtual(models("gpt2", n_layers), lambda engine: crowd(engine, range(40)))
    assert all(outcome.is_whole for outcome in right)
    assert found == right


@pytest.mark.parametrize("seed", range(3))
def test_whoever_leaves_at_any_moment_disturbs_nobody(models: Any, seed: int) -> None:
    async def storm(engine: Engine) -> list[Outcome]:
        rng = random.Random(seed)

        async def torn(number: int) -> None:
            task = asyncio.create_task(ask(engine, wish(number)))
            await asyncio.sleep(rng.expovariate(3.0))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        tearing = asyncio.gather(*(torn(number) for number in range(100, 220)))
        kept, _ = await asyncio.gather(crowd(engine, range(25)), tearing)
        return kept

    model = models("gpt2", 5)
    split = {"prompt_stages": 2, "token_stages": 3}
    kept = virtual(model, storm, seed=seed, **split)
    assert kept == virtual(model, lambda engine: crowd(engine, range(25)))


def test_waits_are_measured_by_place(models: Any) -> None:
    async def look(engine: Engine) -> tuple[dict[str, float], bytes, dvrt.Status]:
        many = [engine.complete([i] * 70, max_tokens=9, ignore_eos=True) for i in range(30)]
        done = await asyncio.gather(*many)
        assert all(sum(d.timings.places.values()) == pytest.approx(d.timings.total_s) for d in done)
        return dict(done[-1].timings.places), engine.metrics.render(), engine.status()

    split = {"prompt_stages": 1, "token_stages": 2}
    places, text, status = virtual(models("gpt2", 5), look, **split)
    assert places["prompt"] > 0 and places["token"] > 0
    assert places["queue"] + places.get("slot", 0.0) > 0
    for place in ("queue", "prompt", "transfer", "token"):
        assert f'dvrt_place_seconds_count{{place="{place}"}} 30.0' in text.decode()
    assert [(each.purpose, len(each.stages)) for each in status.pipelines] == [
        ("prompt", 1),
        ("token", 2),
    ]
    assert [each.role for each in status.workers] == ["prompt", "token", "token"]


async def serve(model: Path, requests: list[dict[str, Any]], **options: Any) -> list[Any]:
    async with dvrt.launch(model, max_context=192, batch_size=4, **options) as engine:
        done = await asyncio.gather(*(engine.complete(**request) for request in requests))
        return [each.samples for each in done]


def mixed(n: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": [rng.randrange(300) for _ in range(rng.choice((1, 5, 64, 65, 130)))],
            "max_tokens": rng.randrange(1, 12),
            "temperature": rng.choice((0.0, 0.9)),
            "seed": number,
            "logprobs": 3,
            "ignore_eos": True,
        }
        for number in range(n)
    ]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_real_models_give_the_same_logits_bit_by_bit(models: Any, family: str) -> None:
    model, requests = models(family, 5), mixed(10, seed=3)
    right = asyncio.run(serve(model, requests, in_process=True))
    for prompt, token in ((1, 1), (2, 3), (3, 2)):
        split = {"prompt_stages": prompt, "token_stages": token}
        assert asyncio.run(serve(model, requests, in_process=True, **split)) == right


def test_real_processes_give_the_same_logits(models: Any) -> None:
    model, requests = models("llama", 5), mixed(6, seed=5)
    right = asyncio.run(serve(model, requests, in_process=True))
    split = {"prompt_stages": 1, "token_stages": 2}
    assert asyncio.run(serve(model, requests, **split)) == right


@pytest.mark.slow
@pytest.mark.parametrize("n_layers", [5, 6, 7])
@pytest.mark.parametrize("swap", [False, True], ids=["resident", "swapped"])
def test_the_whole_matrix_on_a_real_model(models: Any, n_layers: int, swap: bool) -> None:
    """Greedy and seeded, logits and all, for each of the sixteen splits."""
    model, requests = models("llama", n_layers), mixed(10, seed=n_layers)
    right = asyncio.run(serve(model, requests, in_process=True))
    for prompt, token in SPLITS:
        options = {"prompt_stages": prompt, "token_stages": token, "swap": swap}
        found = asyncio.run(serve(model, requests, in_process=True, **options))
        assert found == right, (prompt, token)
