"""Every worker dies at every moment of a change of the split, which is then whole or undone."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.chaos.judge import judge_answers, judge_events
from dvrt.chaos.traffic import Answer, ask
from dvrt.cluster.engine import Engine
from dvrt.errors import StageFailed
from dvrt.virtual import run_virtual
from tests.chaos.moments import CHANGES, armed
from tests.chaos.test_matrix import ASKS, BASE, crew_known

SPLITS: dict[str, dict[str, int]] = {
    "together": {"stages": 3},
    "apart": {"prompt_stages": 1, "token_stages": 2},
}
OTHER = {"together": "apart", "apart": "together"}


def ships(shape: str, worker: int) -> bool:
    """Whether the logs of its old stage move; those of prompts have moved before."""
    return shape == "together" or worker > 0


@pytest.mark.parametrize(
    ("shape", "phase", "worker"),
    [
        (shape, phase, worker)
        for shape, phase, worker in product(SPLITS, CHANGES, range(3))
        if not phase.startswith("log") or ships(shape, worker)
    ],
    ids=str,
)
def test_a_worker_dies_while_the_split_changes(
    model: Path, right: dict[int, Answer], shape: str, phase: str, worker: int
) -> None:
    name = f"worker-{worker}"
    crews: list[Any] = []

    async def main() -> None:
        async with dvrt.launch(model, **{**BASE, **SPLITS[shape]}) as engine:
            answers = asyncio.gather(*(ask(engine, each, name=f"r{each.number}") for each in ASKS))
            await asyncio.sleep(0.6)
            is_changed = await change(engine, SPLITS[OTHER[shape]])
            assert judge_answers(ASKS, await answers, right) == []
            await whole(engine)
            assert judge_events(engine.events()) == []
            found = [len(each.stages) for each in engine.status().pipelines]
            assert found == list(SPLITS[OTHER[shape] if is_changed else shape].values())
            again = [ask(engine, each, name=f"s{each.number}") for each in ASKS]
            assert judge_answers(ASKS, await asyncio.gather(*again), right) == []

    with crew_known(crews), armed(phase, name, lambda: crews[-1].kill(name)) as struck:
        run_virtual(main(), seed=worker)
    assert struck == [name], "the moment did not come"


async def change(engine: Engine, split: dict[str, int]) -> bool:
    """Whether the split changed; it does not when a worker is lost before it took over."""
    try:
        await engine.rebalance(**split)
    except StageFailed:
        return False
    return True


async def whole(engine: Engine) -> None:
    async with asyncio.timeout(60):
        while not engine.is_healthy() or engine.status().state != "serving":
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    status = engine.status()
    assert (status.n_running, status.n_queued, status.n_lost) == (0, 0, 1)
    engine._controller.check_integrity()
