"""Does exact mode hold on this machine? Asked at start-up of the kernels that will be used.

One layer of the stage, and its head, compute the same rows in other places, among other companions
and with a longer extent; all bits must agree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dvrt.models.runner import StageRunner

_MOST_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Exactness:
    """Whether exactness held; ``broken`` names the changes that changed a row's bits."""

    broken: tuple[str, ...]
    took_s: float

    @property
    def holds(self) -> bool:
        return not self.broken

    def __str__(self) -> str:
        if self.holds:
            return f"exact mode holds on this machine (checked in {self.took_s * 1e3:.0f} ms)"
        return (
            f"exact mode does not hold on this machine: rows change with {', '.join(self.broken)}"
        )


def check_exactness(runner: StageRunner) -> Exactness:
    """Run the check. The runner's slots must be unused; microbatch 0 is zeroed afterwards."""
    began = time.perf_counter()
    trial = _Trial(runner)
    with torch.inference_mode(), runner.first_layer_only():
        usual = trial.run(trial.places)
        broken = [
            name for name, rows, places in trial.changes() if not _same(usual, trial, rows, places)
        ]
    trial.clean()
    return Exactness(broken=tuple(broken), took_s=time.perf_counter() - began)


def _same(
    usual: Sequence[bytes], trial: _Trial, rows: Sequence[int], places: Sequence[int]
) -> bool:
    """Do the rows compute what they computed before, in the order ``rows`` and at ``places``?"""
    found = trial.run(places, rows)
    return all(
        found[at] == usual[row] for at, row in enumerate(rows) if places[at] == trial.places[row]
    )


class _Trial:
    """Random logs and inputs for the rows of one microbatch."""

    def __init__(self, runner: StageRunner) -> None:
        spec = runner.spec
        self._runner = runner
        self._n_rows = spec.batch_size
        generator = torch.Generator().manual_seed(0)
        self._limit = min(spec.max_context, _MOST_TOKENS)
        self.places = [(3 + 29 * row) % (self._limit // 2 or 1) for row in range(self._n_rows)]
        keys, values = self._logs()
        self._keys = torch.randn(keys.shape, generator=generator).to(keys)
        self._values = torch.randn(values.shape, generator=generator).to(values)
        width = runner.hidden_size
        hidden = torch.randn((self._n_rows, 1, width), generator=generator)
        self._hidden = hidden.to(keys)
        self._token_ids = list(range(self._n_rows))

    def _logs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first layer's keys and values of microbatch 0, as far as they are looked at."""
        arena, rows = self._runner.arena, self._n_rows
        limit = self._limit
        return arena.keys[0, :rows, :, :limit], arena.values[0, :rows, :, :limit]

    def changes(self) -> list[tuple[str, list[int], list[int]]]:
        """(name, which row stands where, at which positions)."""
        rows = list(range(self._n_rows))
        turned = rows[1:] + rows[:1]
        alone = [self.places[0]] + [-1] * (self._n_rows - 1)
        far = [self.places[0]] + [self._limit - 1] * (self._n_rows - 1)
        return [
            ("their place in the batch", turned, [self.places[row] for row in turned]),
            ("idle companions", rows, alone),
            ("longer companions", rows, far),
        ]

    def run(self, places: Sequence[int], rows: Sequence[int] | None = None) -> list[bytes]:
        """The bits of each row's hidden states (and logits, at the last stage)."""
        order = list(rows if rows is not None else range(self._n_rows))
        runner = self._runner
        for log, content in zip(self._logs(), (self._keys, self._values), strict=True):
            log.copy_(content[order])
        token_ids = [self._token_ids[row] for row in order]
        inputs = token_ids if runner.spec.is_first else self._hidden[order]
        hidden = runner.decode(0, places, inputs)
        out = [row.view(torch.uint8).numpy(force=True).tobytes() for row in hidden]
        if runner.spec.is_last:
            logits = runner.decode_logits(hidden, range(self._n_rows))
            out = [bits + np.asarray(row).tobytes() for bits, row in zip(out, logits, strict=True)]
        return out

    def clean(self) -> None:
        for slot in range(self._n_rows):
            self._runner.scrub(slot)
