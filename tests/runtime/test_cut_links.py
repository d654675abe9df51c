"""Links between living workers break: steps and entries on them are lost, and no token changes."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dvrt.actors.node import Node
from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from tests.attack.traffic import Outcome
from tests.runtime.crowd import crowd, virtual

CONTROLLER = "controller"


def links_between_workers() -> list[Any]:
    nodes = [each for each in gc.get_objects() if type(each) is Node and each._is_open]
    workers = [node for node in nodes if node.name != CONTROLLER]
    addresses = {node.address for node in workers}
    return [
        link
        for node in workers
        for address, links in node._peers._links.items()
        for link in links
        if address in addresses
    ]


def with_cuts(seed: int, cuts: list[int]) -> Callable[[Engine], Awaitable[list[Outcome]]]:
    async def work(engine: Engine) -> list[Outcome]:
        rng = random.Random(seed)
        task = asyncio.create_task(crowd(engine, range(40)))
        while not task.done():
            await asyncio.wait([task], timeout=rng.expovariate(2.0))
            links = links_between_workers()
            if links and not task.done():
                rng.choice(links).end("cut")
                cuts[0] += 1
        assert engine.status().n_lost == 0, "a cut link is no death"
        return await task

    return work


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("cuts") / "tiny", "gpt2", n_layers=5)


@pytest.mark.parametrize("shape", [{"stages": 4}, {"prompt_stages": 2, "token_stages": 3}], ids=str)
def test_cut_links_cost_time_and_no_token(model: Path, shape: dict[str, Any]) -> None:
    right = virtual(model, lambda engine: crowd(engine, range(40)), stages=2)
    cuts = [0]
    assert virtual(model, with_cuts(3, cuts), seed=3, **shape) == right
    assert cuts[0] > 3
