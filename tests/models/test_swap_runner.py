"""Real checkpoints with swapping: the logits of a plain runner, bit by bit, whatever is where."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvrt.buffers import Region
from dvrt.models.runner import Logits, StageRunner
from dvrt.models.spec import StageSpec
from dvrt.models.swap import SwappingModel
from dvrt.models.swap_arena import swapping_runner
from tests.models.pipeline import Pipeline, same_bits

Work = Callable[[Any], list[Logits]]


def spec_of(pipeline: Pipeline, stage: StageRunner, n_frames: int) -> StageSpec:
    fields = {name: getattr(stage.spec, name) for name in StageSpec.__dataclass_fields__}
    return StageSpec(**{**fields, "device_slots": n_frames})


def swapped(directory: Path, n_stages: int, n_frames: int, **changes: Any) -> Pipeline:
    pipeline = Pipeline(directory, n_stages, **changes)
    stages: list[Any] = [
        swapping_runner(spec_of(pipeline, stage, n_frames)) for stage in pipeline.stages
    ]
    pipeline.stages = stages
    return pipeline


def work_through(pipeline: Pipeline, seed: int) -> list[Logits]:
    """Prompts into random slots and decodes of random microbatches, the same for the same seed."""
    draw = random.Random(seed)
    size, n_slots = pipeline.spec.batch_size, pipeline.spec.n_slots
    lengths: dict[int, int] = {}
    out: list[Logits] = []
    for _ in range(14):
        slot = draw.randrange(n_slots)
        if slot not in lengths:
            ids = [draw.randrange(300) for _ in range(draw.choice((1, 5, 64, 70)))]
            out.append(pipeline.prompt(slot, ids))
            lengths[slot] = len(ids)
        microbatch = draw.randrange(pipeline.spec.n_microbatches)
        rows = {s % size: n for s, n in lengths.items() if s // size == microbatch}
        if rows:
            work = {row: (n, draw.randrange(300)) for row, n in rows.items()}
            out.extend(pipeline.step(microbatch, work).values())
            for row in rows:
                lengths[microbatch * size + row] += 1
    return out


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", "float32"), ("llama", "bfloat16")])
@pytest.mark.parametrize(("n_frames", "n_microbatches", "batch_size"), [(1, 3, 1), (2, 5, 3)])
def test_logits_are_those_without_swapping(
    checkpoint: Callable[[str], Path],
    family: str,
    dtype: str,
    n_frames: int,
    n_microbatches: int,
    batch_size: int,
) -> None:
    shape: dict[str, Any] = {
        "n_microbatches": n_microbatches,
        "batch_size": batch_size,
        "max_context": 128,
        "dtype": dtype,
    }
    plain = Pipeline(checkpoint(family), 2, **shape)
    swapping = swapped(checkpoint(family), 2, n_frames, **shape)
    for seed in range(2):
        assert same_bits(work_through(plain, seed), work_through(swapping, seed))


def packed_bytes(model: SwappingModel) -> bytes:
    """Of slot 0, positions [0, 40), in all four layers."""
    packed = model.pack([(0, 0, 40)], 0, 4)
    return bytes(Region.of(packed).view())


def test_logs_go_out_and_come_back_by_the_byte(checkpoint: Callable[[str], Path]) -> None:
    pipeline = swapped(checkpoint("qwen3"), 1, 1, n_microbatches=3, batch_size=2, max_context=128)
    model: Any = pipeline.stages[0]
    assert isinstance(model, SwappingModel)
    pipeline.prompt(0, list(range(40)))
    spec = pipeline.spec
    before = packed_bytes(model)
    pipeline.prompt(3, [9] * 70)
    assert model.frames.frame(0) is None
    assert packed_bytes(model) == before
    model.unpack(5, 0, 40, spec.first, spec.stop, bytearray(before))
    logits = [pipeline.step(m, {r: (40, 7)})[r] for m, r in ((0, 0), (2, 1))]
    assert same_bits(logits[:1], logits[1:])


def test_one_budget_holds_twice_the_rows(checkpoint: Callable[[str], Path]) -> None:
    shape: dict[str, Any] = {"n_microbatches": 4, "max_context": 128}
    plain = Pipeline(checkpoint("gpt2"), 1, batch_size=4, **shape)
    swapping = swapped(checkpoint("gpt2"), 1, 2, batch_size=8, **shape)
    assert swapping.stages[0].kv_bytes == plain.stages[0].kv_bytes
    model: Any = swapping.stages[0]
    assert model.host_kv_bytes == 2 * plain.stages[0].kv_bytes
