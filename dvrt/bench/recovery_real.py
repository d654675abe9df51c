"""Real processes that are killed and stopped while a model on the CPU generates.

Undisturbed and disturbed runs take turns in one cluster; a warm spare takes every lost stage.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.common import spread
from dvrt.bench.recovery_virtual import recovery_parts

STAGES = 2
MODEL: Mapping[str, Any] = {
    "n_layers": 12,
    "hidden_size": 768,
    "n_heads": 12,
    "vocab_size": 50257,
    "max_positions": 1024,
}
WHOLE_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Equal requests, a row each, and the rounds of a run with and one without a loss."""

    rows: int = 8
    prompt: int = 32
    output: int = 256
    rounds: int = 5
    stops: int = 2
    model: Mapping[str, Any] | None = None

    @property
    def fail_at(self) -> int:
        return self.output * 7 // 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbed:
    """One loss: seconds of the requests, until it was noticed, until its worker was replaced by one
    that had joined, and until tokens came again; and its recovery's parts."""

    seconds: float
    detect_s: float
    joined_s: float
    resume_s: float
    parts: dict[str, float]


async def measure_real(folder: Path, size: Size) -> dict[str, Any]:
    """All figures, in seconds and milliseconds."""
    from dvrt.models.tiny import write_tiny

    model = write_tiny(folder / "cpu", "gpt2", **(size.model or MODEL))
    launch = dvrt.launch(
        model,
        device="cpu",
        stages=STAGES,
        microbatches=STAGES,
        batch_size=max(1, size.rows // STAGES),
        max_context=size.prompt + size.output,
        spares=1,
        max_deaths=10_000,
    )
    plain: list[float] = []
    killed: list[Disturbed] = []
    async with launch as engine:
        await _whole(engine)
        await _run(engine, size)
        for number in range(size.rounds):
            plain.append(await _run(engine, size))
            killed.append(await _disturbed(engine, size, signal.SIGKILL, number % STAGES))
        stopped = [
            await _disturbed(engine, size, signal.SIGSTOP, number % STAGES)
            for number in range(size.stops)
        ]
    return {
        "stages": STAGES,
        "plain_s": spread(plain),
        "disturbed_s": spread(each.seconds for each in killed),
        "latency_ratio": spread(
            loss.seconds / without for loss, without in zip(killed, plain, strict=True)
        ),
        "kill": _summary(killed),
        "stop": _summary(stopped),
    }


def _summary(losses: list[Disturbed]) -> dict[str, Any]:
    parts = {name: spread(each.parts[name] * 1000 for each in losses) for name in losses[0].parts}
    return {
        "detect_ms": spread(each.detect_s * 1000 for each in losses),
        "resume_ms": spread(each.resume_s * 1000 for each in losses),
        "joined_ms": spread(each.joined_s * 1000 for each in losses),
        **{name.removesuffix("_s") + "_part_ms": found for name, found in parts.items()},
    }


async def _run(engine: dvrt.Engine, size: Size) -> float:
    began = time.monotonic()
    await asyncio.gather(*(_ask(engine, size, row, asyncio.Event()) for row in range(size.rows)))
    return time.monotonic() - began


async def _ask(engine: dvrt.Engine, size: Size, row: int, due: asyncio.Event) -> None:
    prompt = [(row * 31 + i * 7) % 300 for i in range(size.prompt)]
    count = 0
    async for _ in engine.generate(
        prompt, max_tokens=size.output, temperature=0.0, ignore_eos=True
    ):
        count += 1
        if count == size.fail_at:
            due.set()
    assert count == size.output


async def _disturbed(engine: dvrt.Engine, size: Size, how: signal.Signals, stage: int) -> Disturbed:
    """A run in which the worker of a stage gets a signal once most tokens are there."""
    await _whole(engine)
    known, before = len(engine.events()), recovery_parts(engine)
    victim = next(each for each in engine.status().workers if each.stage == stage)
    due, began = asyncio.Event(), time.monotonic()
    asks = [asyncio.ensure_future(_ask(engine, size, row, due)) for row in range(size.rows)]
    await due.wait()
    struck = time.monotonic()
    os.kill(victim.pid, how)
    await asyncio.gather(*asks)
    seconds = time.monotonic() - began
    await _whole(engine)
    at = {(each.subject, each.state): each.at_s for each in engine.events()[known:]}
    lost = at[victim.name, "lost"]
    joined = [when for (_, state), when in at.items() if state == "idle" and when > lost]
    after = recovery_parts(engine)
    return Disturbed(
        seconds=seconds,
        detect_s=lost - struck,
        joined_s=min(joined) - lost,
        resume_s=at[f"pipeline 0 stage {stage}", "resumed"] - lost,
        parts={name: after[name] - before[name] for name in after},
    )


async def _whole(engine: dvrt.Engine) -> None:
    """Until every stage has a worker, and a spare waits."""
    async with asyncio.timeout(WHOLE_LIMIT_S):
        while True:
            waiting = [each for each in engine.status().workers if each.role == "spare"]
            if engine.is_healthy() and any(each.state == "idle" for each in waiting):
                return
            await asyncio.sleep(0.02)
