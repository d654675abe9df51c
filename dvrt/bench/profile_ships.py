"""What a prompt's chunks take longer where the stage sends each layer's entries away meanwhile."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.stage_spans import StageSpan, read_spans

OUTPUT = 16
APART = {"prompt_stages": 1, "token_stages": 1}


def measure_ships(model: str, *, prompt: int, batch: int, rounds: int, **options: Any) -> float:
    """Chunks of a prompt stage beside its token stage, over those of one stage that keeps its logs.

    A stage has all layers, and a ``prompt`` of so many tokens is one chunk. Raises as ``launch``
    does with these options.
    """

    def chunk_s(output: int, **shape: Any) -> float:
        common = {"batch_size": batch, "max_context": prompt + OUTPUT, **shape, **options}
        spans = asyncio.run(_serve(model, [prompt] * 2 * batch, output, rounds, common))
        steps = [span for span in spans if span.chunks and not span.rows]
        warm = steps[len(steps) // (rounds + 1) :]
        return sum(span.seconds for span in warm) / sum(span.chunks for span in warm)

    keeps_s, ships_s = chunk_s(1, stages=1), chunk_s(OUTPUT, **APART)
    return ships_s / keeps_s


async def _serve(
    model: str, prompts: list[int], output: int, rounds: int, options: dict[str, Any]
) -> list[StageSpan]:
    """The first pipeline's steps while it serves so many rounds, and one that is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        async with dvrt.launch(model, trace=str(trace), **options) as engine:
            for _ in range(rounds + 1):
                asks = (_ask(engine, row, length, output) for row, length in enumerate(prompts))
                await asyncio.gather(*asks)
        return read_spans(trace)


async def _ask(engine: dvrt.Engine, row: int, length: int, output: int) -> None:
    await engine.complete([row + 1] * length, max_tokens=output, temperature=0.0, ignore_eos=True)
