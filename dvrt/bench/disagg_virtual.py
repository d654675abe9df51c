"""A deployment on the real runtime: null devices, virtual time, requests at given moments.

The shape and the step times are a simulator's ``Deployment``, so that all sides are told the same.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dvrt
from dvrt.bench.null_times import write_timing
from dvrt.cluster.plan import CHUNKS_PER_STEP
from dvrt.models.null_timing import NullTiming
from dvrt.results import Completion
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.deployment import Deployment, LineFigures
from dvrt.virtual import run_virtual

PROMPT_FIELDS = ("chunk_s", "prompt_token_s", "prompt_entry_s")
EDGE = 6
"""One in so many ends is left out at the beginning, and as many at the end."""
PATIENCE: Mapping[str, Any] = {"start_limit_s": 3600.0, "heartbeat_s": 20.0, "lease_s": 200.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Of the ends in the middle: median seconds a token, and the mean wait in each place."""

    median_s: float
    places: Mapping[str, float]


def as_launched(deployment: Deployment) -> Deployment:
    """The same with what a launch cannot choose: one set of step times for the equal stages of a
    pipeline, which is the slowest one's, and the runtime's chunks of prompts in a step.
    """
    timing = _timing(deployment)
    return replace(
        deployment,
        tokens=_line_as_launched(deployment.tokens, timing),
        prompts=deployment.prompts and _line_as_launched(deployment.prompts, timing),
    )


def middle(ends: Sequence[float]) -> Sequence[float]:
    """Without those of the warm-up and of the cool-down."""
    edge = len(ends) // EDGE
    return ends[edge : len(ends) - edge]


def play(model: Path, deployment: Deployment, requests: Sequence[Arrival]) -> Seen:
    """Serve these requests in virtual time; those that outlast the middle are given up.

    ``model`` is the checkpoint's directory, with at least as many layers as a pipeline has stages.
    """
    with TemporaryDirectory() as folder:
        times = write_timing(Path(folder) / "times.toml", _timing(deployment))
        launch = dvrt.launch(
            model,
            device="null",
            null_timing=str(times),
            in_process=True,
            replicas=0,
            max_queue=len(requests),
            max_context=max(each.prompt + each.output for each in requests),
            **PATIENCE,
            **_shape(deployment),
        )

        async def main() -> Seen:
            async with launch as engine:
                return await _Run(engine, requests).play()

        return run_virtual(main(), seed=None)


class _Run:
    """The requests of one run, each at its moment."""

    def __init__(self, engine: dvrt.Engine, requests: Sequence[Arrival]) -> None:
        self._engine, self._requests = engine, requests
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._ended: list[tuple[float, Mapping[str, float]]] = []
        self._enough = asyncio.Event()
        self._n_wanted = len(requests) - len(requests) // EDGE

    async def play(self) -> Seen:
        everyone = asyncio.gather(*(self._ask(each) for each in self._requests))
        enough = asyncio.create_task(self._enough.wait())
        both: list[asyncio.Future[Any]] = [everyone, enough]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        enough.cancel()
        if everyone.done():
            everyone.result()
        everyone.cancel()
        with suppress(asyncio.CancelledError):
            await everyone
        return self._seen()

    async def _ask(self, arrival: Arrival) -> None:
        due_s = self._began + arrival.at_s
        await asyncio.sleep(due_s - self._loop.time())
        answer: Completion = await self._engine.complete(
            [7 * place % 300 for place in range(arrival.prompt)],
            max_tokens=arrival.output,
            temperature=0.0,
            ignore_eos=True,
        )
        self._ended.append(((self._loop.time() - due_s) / arrival.output, answer.timings.places))
        if len(self._ended) == self._n_wanted:
            self._enough.set()

    def _seen(self) -> Seen:
        counted = self._ended[len(self._requests) // EDGE : self._n_wanted]
        names = {name for _, places in counted for name in places}
        return Seen(
            median_s=statistics.median(latency_s for latency_s, _ in counted),
            places={
                name: statistics.fmean(places.get(name, 0.0) for _, places in counted)
                for name in sorted(names)
            },
        )


def _timing(deployment: Deployment) -> NullTiming:
    """Decodes as the slowest stage for tokens has them, chunks as the slowest for prompts."""
    tokens = max(
        (stage.timing for stage in deployment.tokens.stages), key=lambda each: each.decode_s
    )
    prompts = max(
        (stage.timing for stage in (deployment.prompts or deployment.tokens).stages),
        key=lambda each: each.prompt_token_s,
    )
    return replace(tokens, **{name: getattr(prompts, name) for name in PROMPT_FIELDS})


def _line_as_launched(line: LineFigures, timing: NullTiming) -> LineFigures:
    stages = tuple(
        replace(stage, timing=replace(timing, entry_bytes=stage.timing.entry_bytes))
        for stage in line.stages
    )
    return replace(line, stages=stages, chunks_per_step=CHUNKS_PER_STEP)


def _shape(deployment: Deployment) -> dict[str, Any]:
    """The options that a launch takes for it."""
    tokens, prompts = deployment.tokens, deployment.prompts
    shape = {
        "batch_size": tokens.batch_size,
        "microbatches": tokens.n_microbatches,
        "chunk_tokens": tokens.chunk_tokens,
    }
    if prompts is None:
        return shape | {"stages": len(tokens.stages)}
    return shape | {
        "token_stages": len(tokens.stages),
        "prompt_stages": len(prompts.stages),
        "prompt_batch_size": prompts.batch_size,
        "prompt_microbatches": prompts.n_microbatches,
    }
