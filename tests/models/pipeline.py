"""Stages run one after the other in this process, and small loops over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvrt.models.check import inspect_checkpoint
from dvrt.models.runner import Logits, StageRunner
from dvrt.models.spec import StageSpec
from dvrt.models.split import split_evenly


class Pipeline:
    """All stages of a checkpoint; what passes between them passes as bytes."""

    def __init__(self, directory: Path, n_stages: int = 1, **changes: Any) -> None:
        model = inspect_checkpoint(directory)
        fields: dict[str, Any] = {
            "directory": str(directory),
            "n_layers": model.n_layers,
            "dtype": "float32",
            "n_microbatches": 1,
            "batch_size": 8,
            "max_context": 256,
            "chunk_tokens": 64,
            **changes,
        }
        self.stages = [
            StageRunner(StageSpec(first=first, stop=stop, **fields))
            for first, stop in split_evenly(model.n_layers, n_stages)
        ]
        self.spec = self.stages[0].spec

    def prompt(self, slot: int, ids: Sequence[int]) -> Logits:
        """Extend an empty log by a prompt in chunks; the logits behind it."""
        logits: Logits | None = None
        size = self.spec.chunk_tokens
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            hidden: Any = part
            for stage in self.stages:
                hidden = stage.chunk(slot, start, len(part), hidden)
            logits = self.stages[-1].chunk_logits(hidden, len(part))
        assert logits is not None
        return logits

    def step(self, microbatch: int, work: Mapping[int, tuple[int, int]]) -> dict[int, Logits]:
        """Row -> (position, token) of one microbatch; row -> the logits behind that position."""
        positions, tokens = [-1] * self.spec.batch_size, [7] * self.spec.batch_size
        for row, (position, token) in work.items():
            positions[row], tokens[row] = position, token
        hidden: Any = tokens
        for stage in self.stages:
            hidden = bytearray(_bytes(hidden)) if stage is not self.stages[0] else hidden
            hidden = stage.decode(microbatch, positions, hidden)
        rows = list(work)
        return dict(zip(rows, self.stages[-1].decode_logits(hidden, rows), strict=True))

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """Greedy tokens of prompts that run side by side in the rows of microbatch 0."""
        out = [[int(self.prompt(slot, ids).argmax())] for slot, ids in enumerate(prompts)]
        for done in range(1, n_tokens):
            work = {row: (len(ids) + done - 1, out[row][-1]) for row, ids in enumerate(prompts)}
            for row, logits in self.step(0, work).items():
                out[row].append(int(logits.argmax()))
        return out


def _bytes(hidden: Any) -> memoryview:
    """Hidden states as they travel between workers."""
    import torch

    return memoryview(hidden.view(torch.uint8).numpy()).cast("B")


def same_bits(one: Sequence[Logits], other: Sequence[Logits]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a.view(np.uint32), b.view(np.uint32))
        for a, b in zip(one, other, strict=True)
    )
