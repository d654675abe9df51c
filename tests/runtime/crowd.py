"""Crowds of requests against whole clusters, in virtual time, with workers that can be killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.virtual import run_virtual
from tests.attack.traffic import Outcome, ask, wish

T = TypeVar("T")
BRISK = {"null_step_ms": 20.0, "max_context": 128, "batch_size": 3, "max_deaths": 1000}


def virtual(
    model: Path, work: Callable[[Engine], Awaitable[T]], *, seed: int = 0, **options: Any
) -> T:
    """What ``work`` returns of a cluster on the null device, which must be at rest afterwards."""

    async def main() -> T:
        chosen = {**BRISK, **options}
        async with dvrt.launch(model, device="null", in_process=True, **chosen) as engine:
            done = await work(engine)
            await at_rest(engine)
            return done

    return run_virtual(main(), seed=seed)


async def at_rest(engine: Engine) -> None:
    """No row is left to anybody, and the books are in order."""
    await asyncio.sleep(1.0)
    status = engine.status()
    assert (status.n_running, status.n_queued) == (0, 0)
    engine._controller.check_integrity()


async def crowd(engine: Engine, numbers: range, *, spread_s: float = 2.0) -> list[Outcome]:
    """Requests by their numbers, each begun at a moment that its number decides."""

    async def client(number: int) -> Outcome:
        await asyncio.sleep(random.Random(number).random() * spread_s)
        return await ask(engine, wish(number))

    return await asyncio.gather(*(client(number) for number in numbers))


def kill(engine: Engine, name: str) -> None:
    """End a worker as a power cut would."""
    engine._controller._overseer._crew.kill(name)


def living(engine: Engine) -> list[str]:
    """The workers that are there, those with a stage first."""
    states = ("lost", "ended")
    return [each.name for each in engine.status().workers if each.state not in states]
