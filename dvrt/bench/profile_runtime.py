"""What the runtime costs beside the model: steps, hops, and the replacement of a lost worker.

Measured on a pipeline of real processes as it serves: one request alone, as many microbatches as
stages, where every hop shows, full microbatches, where only what a busy stage does shows, and
workers that are killed. What the steps themselves take meanwhile, and when each begins, is in the
launch's trace.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.profile_hops import hop_s
from dvrt.bench.profile_ships import measure_ships
from dvrt.bench.stage_spans import StageSpan, read_spans
from dvrt.cluster.plan import Blueprint
from dvrt.config import LaunchOptions
from dvrt.models.null_timing import NullTiming
from dvrt.planner.parts import RuntimeFigures
from dvrt.planner.profile import Profile
from dvrt.simulator.deploy import profile_stages

PROMPT = 8
WHOLE_LIMIT_S = 60.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeProbe:
    """How much is measured; ``tokens`` of each request, ``rounds`` of each kind, ``kills`` of
    workers.

    ``ships``: so many tokens, in one chunk, have the prompts whose logs are sent away, for which
    the whole model is loaded twice; 0 is none.
    """

    stages: int = 2
    batch: int = 4
    tokens: int = 64
    rounds: int = 5
    kills: int = 3
    ships: int = 64

    @property
    def microbatches(self) -> int:
        return self.stages + 1

    @property
    def hop_rows(self) -> int:
        """Rows of a microbatch while hops are measured: more than one request alone has."""
        return min(2, self.batch)

    @property
    def context(self) -> float:
        """The mean one of a request's token steps."""
        return PROMPT + self.tokens / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """After a kill: until it was noticed, and from then until the stage could be used again."""

    detect_s: float
    ready_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSamples:
    """All repeats. ``laps_s`` are seconds between two tokens of a row in full microbatches. See
    ``runtime_figures`` for what follows from them.
    """

    probe: RuntimeProbe
    laps_s: list[float]
    replaced: list[Replaced]
    spans: list[StageSpan]
    ship_factor: float = 1.0

    def token_s(self, rows: int) -> list[float]:
        """What a step took each stage that decoded so many rows and nothing else; the mean, as laps
        have it."""
        found: list[list[float]] = [[] for _ in range(self.probe.stages)]
        for span in self.spans:
            if span.rows == rows and not span.chunks:
                found[span.stage].append(span.seconds)
        return [statistics.fmean(each) for each in found]


def measure_runtime(model: str, probe: RuntimeProbe, **options: Any) -> RuntimeSamples:
    """Launch ``model`` with these options of ``launch``, let it serve, and kill workers of it.

    Raises as ``launch`` does, and TimeoutError where a stage is not replaced.
    """

    async def serve(trace: Path) -> RuntimeSamples:
        launched = dvrt.launch(
            model,
            stages=probe.stages,
            microbatches=probe.microbatches,
            batch_size=probe.batch,
            max_context=PROMPT + probe.tokens,
            max_deaths=10_000,
            trace=str(trace),
            **options,
        )
        async with launched as engine:
            await _lap_s(engine, probe, 1)
            laps_s = [await _full_lap_s(engine, probe) for _ in range(probe.rounds)]
            replaced = [
                await _replaced(engine, probe, number % probe.stages)
                for number in range(probe.kills)
            ]
            return RuntimeSamples(probe=probe, laps_s=laps_s, replaced=replaced, spans=[])

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        samples = replace(asyncio.run(serve(trace)), spans=read_spans(trace))
    if not probe.ships:
        return samples
    factor = measure_ships(
        model, prompt=probe.ships, batch=probe.batch, rounds=probe.rounds, **options
    )
    return replace(samples, ship_factor=factor)


def runtime_figures(
    samples: RuntimeSamples, timings: Sequence[NullTiming], *, load_s: float, is_exact: bool
) -> RuntimeFigures:
    """What is left of laps when the steps' own times are taken off, and of recoveries the load.

    ``timings`` are those of the stages without the runtime, which steps are compared with. A full
    pipeline's lap is one step of each microbatch on the slowest stage; hops are seen between the
    steps (``profile_hops``). Stages that ship were
    measured beside others, and those that do not alone: what that makes of a step is taken off.
    ``load_s`` is the load of one of the stages.
    """
    probe = samples.probe
    full, alone = samples.token_s(probe.batch), samples.token_s(1)
    step_s = statistics.fmean(samples.laps_s) / probe.microbatches - max(full)
    ready_s = statistics.median(each.ready_s for each in samples.replaced)
    token_factor = sum(full) / sum(_token_s(each, probe, probe.batch) for each in timings)
    alone_factor = sum(alone) / sum(_token_s(each, probe, 1) for each in timings)
    return RuntimeFigures(
        step_s=max(0.0, step_s),
        hop_s=hop_s(samples.spans, n_stages=probe.stages, rows=probe.hop_rows),
        detect_s=statistics.median(each.detect_s for each in samples.replaced),
        restart_s=max(0.0, ready_s - load_s),
        is_exact=is_exact,
        token_factor=token_factor,
        alone_factor=alone_factor,
        stages=probe.stages,
        prompt_factor=_prompt_factor(samples, timings),
        ship_factor=max(1.0, samples.ship_factor * alone_factor / token_factor),
    )


def _token_s(timing: NullTiming, probe: RuntimeProbe, rows: int) -> float:
    return timing.decode_step_s([round(probe.context) - 1] * rows)


def _prompt_factor(samples: RuntimeSamples, timings: Sequence[NullTiming]) -> float:
    """Of steps with chunks, after their decodes are taken off as they were measured."""
    full = samples.token_s(samples.probe.batch)
    taken_s = alone_s = 0.0
    for span in samples.spans:
        if not span.chunks:
            continue
        timing = timings[span.stage]
        decodes_s = 0.0
        if span.rows:
            share = _token_s(timing, samples.probe, span.rows) / _token_s(
                timing, samples.probe, samples.probe.batch
            )
            decodes_s = share * full[span.stage]
        taken_s += span.seconds - decodes_s
        alone_s += span.chunks * timing.chunk_step_s(0, PROMPT)
    return taken_s / alone_s


def probe_runtime(blueprint: Blueprint, probe: RuntimeProbe) -> RuntimeSamples:
    """Have the model served as the blueprint's options say."""
    given = blueprint.options
    return measure_runtime(
        given.model,
        probe,
        device=given.device,
        dtype=given.dtype,
        threads=given.threads,
        exact=given.exact,
        chunk_tokens=given.chunk_tokens,
    )


def with_runtime(profile: Profile, samples: RuntimeSamples, options: LaunchOptions) -> Profile:
    """The profile with what the runtime costs beside its step times."""
    probe = samples.probe
    stages = profile_stages(
        replace(profile, runtime=None),
        probe.stages,
        batch=probe.batch,
        chunk_tokens=options.chunk_tokens,
        exact=options.exact,
    )

    runtime = runtime_figures(
        samples,
        [each.timing for each in stages],
        load_s=max(each.load_s for each in stages),
        is_exact=options.exact,
    )
    return replace(profile, runtime=runtime)


async def until_whole(engine: dvrt.Engine) -> None:
    """Until every stage has a worker. Raises TimeoutError when one stays lost."""
    async with asyncio.timeout(WHOLE_LIMIT_S):
        while True:
            if engine.is_healthy():
                return
            await asyncio.sleep(POLL_S)


async def _full_lap_s(engine: dvrt.Engine, probe: RuntimeProbe) -> float:
    """One request alone, one microbatch for each stage, and all of them full, whose lap it is."""
    await _lap_s(engine, probe, 1)
    await _lap_s(engine, probe, probe.stages * probe.hop_rows)
    return await _lap_s(engine, probe, probe.microbatches * probe.batch)


async def _lap_s(engine: dvrt.Engine, probe: RuntimeProbe, rows: int) -> float:
    """The mean gap between two tokens of a row while so many rows generate, all of them.

    The mean, since what takes long now and then is part of what a request takes.
    """
    moments = await asyncio.gather(*(_generate(engine, probe, row) for row in range(rows)))
    begin_s, end_s = max(each[0] for each in moments), min(each[-1] for each in moments)
    return statistics.fmean(
        later - earlier
        for each in moments
        for earlier, later in pairwise(each)
        if begin_s <= earlier and later <= end_s
    )


async def _generate(
    engine: dvrt.Engine, probe: RuntimeProbe, row: int, begun: asyncio.Event | None = None
) -> list[float]:
    """When each token of a request came."""
    clock, moments = asyncio.get_running_loop().time, []
    async for _ in engine.generate(
        [row + 1] * PROMPT, max_tokens=probe.tokens, temperature=0.0, ignore_eos=True
    ):
        moments.append(clock())
        if begun is not None:
            begun.set()
    return moments


async def _replaced(engine: dvrt.Engine, probe: RuntimeProbe, stage: int) -> Replaced:
    """Kill a stage's worker while a request generates, and wait until it has another."""
    known = len(engine.events())
    victim = next(each for each in engine.status().workers if each.stage == stage)
    begun = asyncio.Event()
    asking = asyncio.create_task(_generate(engine, probe, stage, begun))
    await begun.wait()
    killed_s = asyncio.get_running_loop().time()
    os.kill(victim.pid, signal.SIGKILL)
    await asyncio.wait_for(asking, WHOLE_LIMIT_S)
    await until_whole(engine)
    name = f"pipeline 0 stage {stage}"
    at = {(each.subject, each.state): each.at_s for each in engine.events()[known:]}
    lost_s = at[name, "lost"]
    return Replaced(detect_s=lost_s - killed_s, ready_s=at[name, "ready"] - lost_s)
