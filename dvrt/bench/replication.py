"""``bench replication``: what copies of every log cost while nothing fails.

Two clusters side by side, one that keeps copies and one that does not, take turns in short
windows. Null devices in four stages, and a model of GPT-2-124M's shape on two cores.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.common import Measured, beside, spread
from dvrt.planner.predict import Deployment, fixed_times, predict

NULL_STAGES, NULL_STEP_MS, NULL_ROWS = 4, 5.0, 8
REAL_STAGES, REAL_ROWS = 2, 8
MODEL: Mapping[str, Any] = {
    "n_layers": 12,
    "hidden_size": 768,
    "n_heads": 12,
    "vocab_size": 50257,
    "max_positions": 1024,
}
SIDES = (0, 1)
"""Copies of each log on the two sides."""
SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A window: rows that generate so many tokens each, from prompts of so many."""

    rows: int
    prompt: int
    output: int
    windows: int


def measure(*, quick: bool) -> Measured:
    """Seconds of a window on each side, and how far copies are behind."""
    null = Load(rows=NULL_ROWS, prompt=16, output=60 if quick else 100, windows=5 if quick else 15)
    real = Load(rows=REAL_ROWS, prompt=32, output=8 if quick else 24, windows=4 if quick else 40)
    with tempfile.TemporaryDirectory() as scratch:
        null_found = asyncio.run(_null(Path(scratch), null))
        with two_cores() as cores:
            real_found = asyncio.run(_real(Path(scratch), real))
    lags: Counter[int] = null_found.pop("lags") + real_found.pop("lags")
    return Measured(
        results={
            "null": null_found | _beside(null_found, NULL_STAGES, null),
            "real": {"cores": cores, **real_found} | _beside(real_found, REAL_STAGES, real),
        },
        ratios={
            "slowdown_null": null_found["slowdown"]["median"],
            "slowdown_real": real_found["slowdown"]["median"],
            "lag_tokens_p50": float(statistics.median(lags.elements())),
        },
        notes=[
            "slowdown: time of a window with copies over its neighbour's without; the median",
            "predicted: the planner's steady state with copies over that without, at the step time "
            "measured without and a link that keeps up",
            f"null: {NULL_STAGES} stages of {NULL_STEP_MS:g} ms a step, a process each",
            f"real: {REAL_STAGES} stages, a step has {REAL_ROWS // REAL_STAGES} rows",
            f"lag: tokens of one sequence that copies lack, every {SAMPLE_S * 1000:g} ms, of all "
            "stages",
        ],
    )


def _beside(found: Mapping[str, Any], stages: int, load: Load) -> dict[str, Any]:
    """The planner's slowdown beside the measured one."""
    step_s = found["without_round_ms"]["median"] / 1000 / stages
    laps = [
        predict(
            fixed_times(step_s),
            Deployment(
                stages=stages,
                microbatches=stages,
                batch_size=load.rows // stages,
                replicas=copies,
            ),
            prompt=load.prompt,
            output=load.output,
        ).lap_s
        for copies in SIDES
    ]
    return {"against_plan": beside(laps[1] / laps[0], found["slowdown"]["median"])}


@contextmanager
def two_cores() -> Iterator[int]:
    """This thread, and the threads and processes begun meanwhile, keep to two usable cores."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)[-2:]
    os.sched_setaffinity(0, cores)
    try:
        yield len(cores)
    finally:
        os.sched_setaffinity(0, before)


async def _null(folder: Path, load: Load) -> dict[str, Any]:
    from dvrt.models.tiny import write_tiny

    model = write_tiny(folder / "null", "gpt2", n_layers=NULL_STAGES, hidden_size=16)
    options = {"device": "null", "null_step_ms": NULL_STEP_MS, "stages": NULL_STAGES}
    return await _compare(model, load, batch_size=load.rows // NULL_STAGES, **options)


async def _real(folder: Path, load: Load) -> dict[str, Any]:
    from dvrt.models.tiny import write_tiny

    model = write_tiny(folder / "real", "gpt2", **MODEL)
    options = {"device": "cpu", "stages": REAL_STAGES, "microbatches": REAL_STAGES}
    return await _compare(model, load, batch_size=load.rows // REAL_STAGES, **options)


async def _compare(model: Path, load: Load, **options: Any) -> dict[str, Any]:
    """Windows without and with copies, in turns, in two clusters that are there all the time."""
    common = {"max_context": load.prompt + load.output, **options}
    without = dvrt.launch(model, replicas=SIDES[0], **common)
    kept = dvrt.launch(model, replicas=SIDES[1], **common)
    taken: dict[int, list[float]] = {side: [] for side in SIDES}
    lags: Counter[int] = Counter()
    async with without as first, kept as second:
        engines = dict(zip(SIDES, (first, second), strict=True))
        for number in range(-1, load.windows):
            for side in SIDES if number % 2 else SIDES[::-1]:
                seconds = await _window(engines[side], load, lags if side else None)
                if number >= 0:
                    taken[side].append(seconds)
    steps = load.output
    return {
        "slowdown": spread(b / a for a, b in zip(taken[0], taken[1], strict=True)),
        "without_round_ms": spread(s / steps * 1000 for s in taken[0]),
        "with_round_ms": spread(s / steps * 1000 for s in taken[1]),
        "lag_share_at_most_one": sum(n for lag, n in lags.items() if lag <= 1) / lags.total(),
        "lags": lags,
    }


async def _window(engine: dvrt.Engine, load: Load, lags: Counter[int] | None) -> float:
    """Seconds from the moment that all rows have a token until all have their last."""
    started = asyncio.Barrier(load.rows + 1)
    asks = [asyncio.ensure_future(_ask(engine, load, row, started)) for row in range(load.rows)]
    await started.wait()
    began = time.monotonic()
    pending = set(asks)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=SAMPLE_S)
        if lags is not None and len(pending) == load.rows:
            lags.update(w.replica_lag for w in engine.status().workers if w.replica_lag is not None)
    await asyncio.gather(*asks)
    return time.monotonic() - began


async def _ask(engine: dvrt.Engine, load: Load, row: int, started: asyncio.Barrier) -> None:
    prompt = [(row * 31 + i * 7) % 300 for i in range(load.prompt)]
    count = 0
    async for _ in engine.generate(
        prompt, max_tokens=load.output, temperature=0.0, ignore_eos=True
    ):
        count += 1
        if count == 1:
            await started.wait()
