"""A decode step and a swap-in, timed at load time on the stage that will serve."""

from __future__ import annotations

import time
from typing import Any

from dvrt.models.runner import StageRunner
from dvrt.models.swap import Backing, SwapTrial

_REPEATS = 3


def try_swapping(runner: StageRunner, backing: Backing) -> SwapTrial:
    """The best of a few tries each. The device's logs must be unused; they are zeroed after."""
    spec = runner.spec
    position = spec.max_context // 2
    rows = range(spec.batch_size)
    inputs: Any = [0] * spec.batch_size
    if not spec.is_first:
        inputs = bytearray(spec.batch_size * runner.hidden_size * runner.arena.storage.itemsize)
    step_s = min(_seconds(lambda: runner.decode(0, [position] * len(rows), inputs)))

    def copy_in() -> None:
        for row in rows:
            backing.copy_in(row, row, 0, spec.max_context)

    copy_s = min(_seconds(copy_in))
    for row in rows:
        runner.scrub(row)
    nbytes = spec.batch_size * spec.max_context * runner.entry_bytes(spec.first, spec.stop)
    return SwapTrial(step_s, nbytes / max(copy_s, 1e-9))


def _seconds(work: Any) -> list[float]:
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found
