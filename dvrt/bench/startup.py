"""``bench startup``: how much longer four workers take to be ready than one."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import dvrt
from dvrt.bench.common import Measured, require_storyteller, spread


def measure(*, quick: bool) -> Measured:
    """Launches of one and of four workers in turn; the model is the demo's."""
    model = require_storyteller()
    seconds: dict[int, list[float]] = {1: [], 4: []}
    for _ in range(2 if quick else 5):
        for stages, times in seconds.items():
            times.append(asyncio.run(_ready_after(model, stages)))
    one, four = spread(seconds[1]), spread(seconds[4])
    return Measured(
        results={"one_worker_s": one, "four_workers_s": four},
        ratios={"four_vs_one": four["median"] / one["median"]},
        notes=["nothing is predicted: a launch is what a profile measures, as restart and load"],
    )


async def _ready_after(model: Path, stages: int) -> float:
    began = time.monotonic()
    async with dvrt.launch(model, stages=stages):
        return time.monotonic() - began
