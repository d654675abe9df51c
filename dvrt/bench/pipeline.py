"""``bench pipeline``: what the runtime itself costs, with devices that only take time.

Four stages in four processes, a null device each: the share of the time that the devices are
occupied, by their own clocks, and the time of a hop between stages. Once with as many microbatches
as stages, where every hop shows, and once with one more, as is the default. A ring of bare event
loops in as many processes takes turns with the former: what it falls short of is the machine's own.
The planner's tokens a second, which knows of no hops, stand beside the measured ones.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.bare_ring import ring_busy_fraction
from dvrt.bench.common import Measured, run_like_launch, spread
from dvrt.planner.predict import Deployment, fixed_times, predict, prediction_error

N_STAGES = 4
STEP_MS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Busy fraction, microseconds a hop, and tokens a second of one window."""

    busy: float
    hop_us: float
    tokens_per_s: float


def measure(*, quick: bool) -> Measured:
    """Occupation and hop time over several windows."""
    return run_like_launch(_measure(windows=2 if quick else 5, n_tokens=200 if quick else 1000))


async def _measure(*, windows: int, n_tokens: int) -> Measured:
    from dvrt.models.tiny import write_tiny

    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny(
            Path(scratch) / "null", "gpt2", n_layers=N_STAGES, max_positions=2048, hidden_size=16
        )
        tight, bare = await _windows(model, N_STAGES, windows, n_tokens, beside=_bare_ring)
        usual, _ = await _windows(model, N_STAGES + 1, windows, n_tokens)
    results: dict[str, Any] = {
        "step_ms": STEP_MS,
        "stages": N_STAGES,
        "busy_fraction": spread(each.busy for each in tight),
        "busy_fraction_bare_ring": spread(bare),
        "busy_fraction_one_microbatch_more": spread(each.busy for each in usual),
        "hop_us": spread(each.hop_us for each in tight),
        "as_many_microbatches": _beside(tight, N_STAGES, n_tokens),
        "one_microbatch_more": _beside(usual, N_STAGES + 1, n_tokens),
    }
    return Measured(
        results=results,
        ratios={
            "busy_fraction": results["busy_fraction"]["median"],
            "busy_fraction_vs_bare_ring": results["busy_fraction"]["median"]
            / results["busy_fraction_bare_ring"]["median"],
            "hop_us": results["hop_us"]["median"],
        },
        notes=[
            "hop_us: (time of a round - time on the devices) / (stages + 1) hops",
            "prediction_error: predicted over measured tokens a second, less one",
        ],
    )


def _beside(windows: list[Window], microbatches: int, n_tokens: int) -> dict[str, Any]:
    """The planner's tokens a second beside the measured ones."""
    shape = Deployment(stages=N_STAGES, microbatches=microbatches, batch_size=1)
    predicted = predict(fixed_times(STEP_MS / 1000), shape, prompt=1, output=n_tokens)
    measured = spread(each.tokens_per_s for each in windows)
    return {
        "tokens_per_s": measured,
        "predicted_tokens_per_s": predicted.tokens_per_s,
        "predicted_busy_fraction": predicted.busy_share,
        "prediction_error": prediction_error(predicted.tokens_per_s, measured["median"]),
    }


def _bare_ring(seconds: float) -> float:
    return ring_busy_fraction(n_stages=N_STAGES, step_s=STEP_MS / 1000, seconds=seconds)


async def _windows(
    model: Path,
    microbatches: int,
    windows: int,
    n_tokens: int,
    beside: Callable[[float], float] | None = None,
) -> tuple[list[Window], list[float]]:
    """The windows, and what ``beside`` gives in turns with them for as many seconds."""
    seen: list[Window] = []
    others: list[float] = []
    launch = dvrt.launch(
        model,
        stages=N_STAGES,
        microbatches=microbatches,
        batch_size=1,
        device="null",
        null_step_ms=STEP_MS,
    )
    async with launch as engine:
        for _ in range(windows):
            seen.append(await _window(engine, microbatches, n_tokens))
            if beside is not None:
                others.append(await asyncio.to_thread(beside, _seconds(n_tokens)))
    return seen, others


def _seconds(n_tokens: int) -> float:
    """How long a window is: most of the time in which its requests run."""
    return n_tokens * N_STAGES * STEP_MS / 1000 * 0.8


async def _window(engine: dvrt.Engine, microbatches: int, n_tokens: int) -> Window:
    """What one window saw while every microbatch generates."""
    wish = {"max_tokens": n_tokens, "temperature": 0.0, "ignore_eos": True}
    running = [asyncio.create_task(_consume(engine, i, wish)) for i in range(microbatches)]
    await asyncio.sleep(0.2)
    began, before = time.monotonic(), _occupied(engine)
    await asyncio.sleep(_seconds(n_tokens))
    seconds, after = time.monotonic() - began, _occupied(engine)
    await asyncio.gather(*running)
    busy_s = [b - a for (a, _), (b, _) in zip(before, after, strict=True)]
    steps = sum(b - a for (_, a), (_, b) in zip(before, after, strict=True))
    rounds = steps / N_STAGES / microbatches
    on_devices_s = sum(busy_s) / N_STAGES
    hop_us = (seconds - on_devices_s) / rounds / (N_STAGES + 1) * 1e6
    return Window(
        busy=on_devices_s / seconds, hop_us=hop_us, tokens_per_s=steps / N_STAGES / seconds
    )


async def _consume(engine: dvrt.Engine, i: int, wish: dict[str, Any]) -> None:
    async for _ in engine.generate([i + 1], **wish):
        pass


def _occupied(engine: dvrt.Engine) -> list[tuple[float, int]]:
    """Busy seconds and steps of each stage, by its own clock."""
    return [(worker.busy_s, worker.steps) for worker in engine.status().workers]
