"""Every split with every way to swap: real processes for each pair of choices, and all in one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from tests.attack.traffic import Outcome, ask, wish
from tests.runtime.crowd import crowd, virtual
from tests.runtime.test_disaggregated import mixed, serve

LAYERS = (5, 6, 7)
STAYING, LEAVING = range(8), range(50, 54)


class Case(NamedTuple):
    """``slots`` is ``device_slots``, 0 without swapping; ``microbatches`` are of the token side."""

    prompt: int
    token: int
    layers: int
    slots: int
    microbatches: int

    def options(self) -> dict[str, Any]:
        split: dict[str, Any] = {
            "prompt_stages": self.prompt,
            "token_stages": self.token,
            "microbatches": self.microbatches,
            "batch_size": 3,
            "max_context": 128,
        }
        return split | ({"swap": True, "device_slots": self.slots} if self.slots else {})

    def pairs(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        yield from combinations(enumerate(self), 2)


CASES = [
    case
    for case in map(Case._make, product(range(1, 5), range(1, 5), LAYERS, range(3), range(1, 6)))
    if case.microbatches >= case.token
]
"""With fewer microbatches than stages there would be more of them all the same."""


def pairwise(cases: Iterable[Case]) -> list[Case]:
    """A few of the cases, so that whatever two choices occur together in one occur in these."""
    left, chosen = {pair for case in cases for pair in case.pairs()}, []
    while left:
        best = max(cases, key=lambda case: sum(pair in left for pair in case.pairs()))
        left.difference_update(best.pairs())
        chosen.append(best)
    return chosen


SAMPLE = pairwise(CASES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("matrix")

    @cache
    def make(n_layers: int, family: str = "gpt2") -> Path:
        return write_tiny(root / f"{family}-{n_layers}", family, n_layers=n_layers)

    return make


@pytest.fixture(scope="module")
def right(models: Any) -> Any:
    """What one pipeline for both answers, in one process and without swapping."""

    @cache
    def answers(n_layers: int) -> dict[int, Outcome]:
        async def work(engine: Engine) -> dict[int, Outcome]:
            numbers = (*STAYING, *LEAVING)
            found = await asyncio.gather(*(ask(engine, wish(number)) for number in numbers))
            return dict(zip(numbers, found, strict=True))

        return virtual(models(n_layers), work)

    return answers


def test_the_sample_has_every_pair() -> None:
    every = {pair for case in CASES for pair in case.pairs()}
    assert every == {pair for case in SAMPLE for pair in case.pairs()}
    assert len(SAMPLE) < 30


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: "-".join(map(str, case)))
def test_real_processes_answer_as_one_does(models: Any, right: Any, case: Case) -> None:
    """Greedy and seeded, with stops; four clients leave after as many tokens as they feel like."""

    expected = right(case.layers)

    async def main() -> None:
        options = case.options() | ({"swap_bandwidth": "5MB"} if case.slots else {})
        launch = dvrt.launch(models(case.layers), device="null", null_step_ms=0.5, **options)
        async with launch as engine:
            leaving = asyncio.gather(
                *(ask(engine, wish(number), leave_after=number % 7 + 1) for number in LEAVING)
            )
            kept = await asyncio.gather(*(ask(engine, wish(number)) for number in STAYING))
            torn = await leaving
            while engine.status().n_running:
                await asyncio.sleep(0.01)
            engine._controller.check_integrity()
            swapping = [worker for worker in engine.status().workers if worker.swap]
        assert kept == [expected[number] for number in STAYING]
        assert all(
            outcome.fits(expected[number]) for number, outcome in zip(LEAVING, torn, strict=True)
        )
        assert bool(swapping) == (0 < case.slots < max(case.microbatches, case.prompt + 1))

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("prompt", "token", "options"),
    [
        (2, 3, {"swap": True, "device_slots": 1}),
        (3, 1, {"swap": True, "microbatches": 4, "swap_bandwidth": "1GB"}),
    ],
    ids=str,
)
def test_real_models_in_real_processes_that_swap(
    models: Any, prompt: int, token: int, options: dict[str, Any]
) -> None:
    """Logits and all."""
    model, requests = models(7, "llama"), mixed(6, seed=prompt)
    right = asyncio.run(serve(model, requests, in_process=True))
    split = {"prompt_stages": prompt, "token_stages": token}
    assert asyncio.run(serve(model, requests, **split, **options)) == right


@pytest.mark.slow
@pytest.mark.parametrize("slots", range(3), ids=lambda slots: f"slots{slots}")
@pytest.mark.parametrize("n_layers", LAYERS)
def test_every_case_in_one_process(models: Any, n_layers: int, slots: int) -> None:
    """All splits and numbers of microbatches; the hash model makes every byte tell."""
    model, numbers = models(n_layers), range(8)
    right = virtual(model, lambda engine: crowd(engine, numbers))
    for case in CASES:
        if (case.layers, case.slots) == (n_layers, slots):
            slow = {"swap_bandwidth": "500KB"} if slots else {}
            found = virtual(model, lambda engine: crowd(engine, numbers), **case.options(), **slow)
            assert found == right, case
