"""What a prompt's chunks take longer where the stage sends each layer's entries away meanwhile."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.stage_spans import StageSpan, read_spans
from dvrt.models.null_timing import NullTiming

OUTPUT = 16


def measure_ships(
    model: str, *, prompt: int, batch: int, rounds: int, **options: Any
) -> list[StageSpan]:
    """The steps of a prompt stage that has all layers, as it serves one token stage.

    A ``prompt`` of so many tokens is one chunk.

    Raises as ``launch`` does with these options.
    """

    async def serve(trace: Path) -> None:
        launched = dvrt.launch(
            model,
            prompt_stages=1,
            token_stages=1,
            batch_size=batch,
            max_context=prompt + OUTPUT,
            trace=str(trace),
            **options,
        )
        async with launched as engine:
            for _ in range(rounds):
                await asyncio.gather(
                    *(_ask(engine, [row + 1] * prompt) for row in range(2 * batch))
                )

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        asyncio.run(serve(trace))
        return read_spans(trace)


async def _ask(engine: dvrt.Engine, prompt: list[int]) -> None:
    await engine.complete(prompt, max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)


def ship_factor(
    spans: list[StageSpan], timing: NullTiming, *, prompt: int, prompt_factor: float
) -> float:
    """Beside the ``prompt_factor`` of stages that keep their logs; 1 where nothing was measured.

    ``timing`` is that of the stage, without the runtime.
    """
    steps = [span for span in spans if span.chunks]
    if not steps:
        return 1.0
    alone_s = statistics.fmean(span.chunks * timing.chunk_step_s(0, prompt) for span in steps)
    return statistics.fmean(span.seconds for span in steps) / alone_s / prompt_factor
