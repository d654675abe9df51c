"""The paper's Figs. 10 and 11 on the real runtime: null devices, virtual time, workers killed.

The request's latency with a loss over the one without. Prices are those of a profile.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.null_times import stage_timing, write_timing
from dvrt.models.null_timing import NullTiming
from dvrt.planner.profile import Profile
from dvrt.virtual import run_virtual

STAGES = 4
VICTIM = 1
"""The stage whose worker is killed."""
PATIENCE: dict[str, Any] = {
    "start_limit_s": 3600.0,
    "heartbeat_s": 1.0,
    "lease_s": 60.0,
    "max_deaths": 1000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Equal requests, one a microbatch at a time."""

    prompt: int = 500
    output: int = 1000
    requests: int = 1
    fail_at: int = 700

    @property
    def context(self) -> int:
        return self.prompt + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Seconds of a run, and the parts of its recoveries by name."""

    seconds: float
    parts: dict[str, float]
    recomputed: int
    restored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a stage of a profile costs, the way of a replaced worker included."""

    timing: NullTiming
    network: float
    cold_start_s: float

    @classmethod
    def of(cls, profile: Profile, *, start_s: float) -> Prices:
        """Weights stream from the disk through host memory: ``load_s`` is the way to the device,
        ``read_s`` how much longer the disk takes."""
        layers = math.ceil(profile.model.layers / STAGES)
        load_s = layers * profile.model.layer_weight_bytes / profile.machine.host_to_device
        timing = replace(
            stage_timing(profile, layers),
            start_s=start_s,
            read_s=max(0.0, profile.load_s(layers) - load_s),
            load_s=load_s,
        )
        return cls(
            timing=timing,
            network=profile.restore,
            cold_start_s=profile.recovery.restart_s,
        )

    def restore_s(self, shape: Shape) -> float:
        """What virtual time leaves out: one stage's entries on their way back."""
        positions = shape.requests * (shape.prompt + shape.fail_at)
        return positions * self.timing.entry_bytes / self.network

    def started_cold(self) -> Prices:
        """With a worker whose process and libraries come up from nothing."""
        return replace(self, timing=replace(self.timing, start_s=self.cold_start_s))


class Virtual:
    """Clusters of null devices in a scratch folder; every run is a fresh one."""

    def __init__(self, folder: Path, prices: Prices) -> None:
        self._folder, self._prices = folder, prices

    def run(
        self,
        shape: Shape,
        *,
        losses_s: Sequence[float] = (),
        fails: bool = False,
        **options: Any,
    ) -> Run:
        """All requests at once; a worker is killed at the token ``fail_at`` of the first, or at
        these moments."""
        launch = dvrt.launch(
            self._model(),
            stages=STAGES,
            microbatches=STAGES,
            batch_size=1,
            max_context=shape.context,
            max_queue=max(1, shape.requests),
            device="null",
            null_timing=str(write_timing(self._folder / "recovery.toml", self._prices.timing)),
            in_process=True,
            **PATIENCE,
            **options,
        )

        async def main() -> Run:
            async with launch as engine:
                await _until_warm(engine, self._prices.timing)
                return await _serve(engine, shape, losses_s, fails)

        return run_virtual(main(), seed=None)

    def _model(self) -> Path:
        from dvrt.models.tiny import write_tiny

        path = self._folder / "null"
        if not path.exists():
            write_tiny(path, "gpt2", n_layers=STAGES, hidden_size=16, max_positions=2048)
        return path


async def _until_warm(engine: dvrt.Engine, timing: NullTiming) -> None:
    """Spares have started, and have read all that they may need."""
    await asyncio.sleep(timing.start_s + STAGES * timing.read_s + 1.0)
    assert engine.is_healthy()


async def _serve(engine: dvrt.Engine, shape: Shape, losses_s: Sequence[float], fails: bool) -> Run:
    loop = asyncio.get_running_loop()
    began = loop.time()
    deaths = [loop.call_at(began + at_s, kill_stage, engine, VICTIM) for at_s in losses_s]
    asks = (_ask(engine, shape, i, fails and i == 0) for i in range(shape.requests))
    await asyncio.gather(*asks)
    seconds = loop.time() - began
    for death in deaths:
        death.cancel()
    return Run(
        seconds=seconds,
        parts=recovery_parts(engine),
        recomputed=int(engine.metrics.value("dvrt_recomputed_tokens")),
        restored=int(engine.metrics.value("dvrt_restored_tokens")),
    )


async def _ask(engine: dvrt.Engine, shape: Shape, number: int, fails: bool) -> None:
    prompt = [(number * 31 + i * 7) % 300 for i in range(shape.prompt)]
    count = 0
    async for _ in engine.generate(
        prompt, max_tokens=shape.output, temperature=0.0, ignore_eos=True
    ):
        count += 1
        if fails and count == shape.fail_at:
            kill_stage(engine, VICTIM)
    assert count == shape.output


def kill_stage(engine: dvrt.Engine, stage: int) -> None:
    """End the worker of a stage as a power cut would, if there is one."""
    for worker in engine.status().workers:
        if worker.stage == stage and worker.state == "ready":
            engine._controller._overseer._crew.kill(worker.name)


def recovery_parts(engine: dvrt.Engine) -> dict[str, float]:
    """Seconds of each part of all recoveries so far."""
    return {
        f"{part}_s": engine.metrics.value("dvrt_recovery_seconds_sum", part=part)
        for part in ("detect", "replace", "restore", "recompute")
    }
