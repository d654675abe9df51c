"""``bench pipeline``: what the runtime itself costs, with devices that only take time.

Four stages in four processes, a null device each: the share of the time that the devices are
occupied, by their own clocks, and the time of a hop between stages. Once with as many microbatches
as stages, where every hop shows, and once with one more, as is the default.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.common import Measured, spread

N_STAGES = 4
STEP_MS = 5.0


def measure(*, quick: bool) -> Measured:
    """Occupation and hop time over several windows."""
    return asyncio.run(_measure(windows=2 if quick else 5, n_tokens=200 if quick else 1000))


async def _measure(*, windows: int, n_tokens: int) -> Measured:
    from dvrt.models.tiny import write_tiny

    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny(
            Path(scratch) / "null", "gpt2", n_layers=N_STAGES, max_positions=2048, hidden_size=16
        )
        tight = await _windows(model, N_STAGES, windows, n_tokens)
        usual = await _windows(model, N_STAGES + 1, windows, n_tokens)
    results: dict[str, Any] = {
        "step_ms": STEP_MS,
        "stages": N_STAGES,
        "busy_fraction": spread(busy for busy, _ in tight),
        "busy_fraction_one_microbatch_more": spread(busy for busy, _ in usual),
        "hop_us": spread(hop for _, hop in tight),
    }
    return Measured(
        results=results,
        ratios={
            "busy_fraction": results["busy_fraction"]["median"],
            "hop_us": results["hop_us"]["median"],
        },
        notes=["hop_us: (time of a round - time on the devices) / (stages + 1) hops"],
    )


async def _windows(
    model: Path, microbatches: int, windows: int, n_tokens: int
) -> list[tuple[float, float]]:
    launch = dvrt.launch(
        model,
        stages=N_STAGES,
        microbatches=microbatches,
        batch_size=1,
        device="null",
        null_step_ms=STEP_MS,
    )
    async with launch as engine:
        return [await _window(engine, microbatches, n_tokens) for _ in range(windows)]


async def _window(engine: dvrt.Engine, microbatches: int, n_tokens: int) -> tuple[float, float]:
    """Busy fraction and microseconds a hop while every microbatch generates."""
    wish = {"max_tokens": n_tokens, "temperature": 0.0, "ignore_eos": True}
    running = [asyncio.create_task(_consume(engine, i, wish)) for i in range(microbatches)]
    await asyncio.sleep(0.2)
    began, before = time.monotonic(), _occupied(engine)
    await asyncio.sleep((n_tokens * N_STAGES * STEP_MS / 1000) * 0.8)
    seconds, after = time.monotonic() - began, _occupied(engine)
    await asyncio.gather(*running)
    busy_s = [b - a for (a, _), (b, _) in zip(before, after, strict=True)]
    steps = sum(b - a for (_, a), (_, b) in zip(before, after, strict=True))
    rounds = steps / N_STAGES / microbatches
    on_devices_s = sum(busy_s) / N_STAGES
    hop_us = (seconds - on_devices_s) / rounds / (N_STAGES + 1) * 1e6
    return on_devices_s / seconds, hop_us


async def _consume(engine: dvrt.Engine, i: int, wish: dict[str, Any]) -> None:
    async for _ in engine.generate([i + 1], **wish):
        pass


def _occupied(engine: dvrt.Engine) -> list[tuple[float, int]]:
    """Busy seconds and steps of each stage, by its own clock."""
    return [(worker.busy_s, worker.steps) for worker in engine.status().workers]
