"""What the public simulators are given: a trace's lengths, grouped arrivals, a pipeline's work.

Times are microseconds, as theirs are, so that sums round in the same places. Knows no cost model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError
from dvrt.planner.model_info import read_json

SEED = 42
MAX_ITEMS = 512
SHORTEST, LONGEST = 2, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineWork:
    """Microbatches for one pipeline, in the order in which they enter it.

    ``entries_us[b]`` is the earliest start of microbatch b at the first stage; ``prompt_us`` is
    None when prompts are computed elsewhere. Raises ConfigError unless every stage gets at least
    one microbatch (the public simulators index past the end of their list then).
    """

    stages: int
    lengths: Sequence[int]
    entries_us: Sequence[float]
    prompt_us: float | None
    token_us: float

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ConfigError(f"{self.stages} machines; a pipeline needs at least one")
        if len(self.lengths) < self.stages:
            raise ConfigError(
                f"{len(self.lengths)} microbatches for {self.stages} stages; "
                "a pipeline starts with one on every stage"
            )
        check_time("token_time", self.token_us)
        check_time("prompt_time", self.prompt_us or 0.0)

    @property
    def visits(self) -> int:
        """How often a microbatch passes a stage, all together: one event of the simulator each."""
        prompts = 0 if self.prompt_us is None else len(self.lengths)
        return self.stages * (sum(self.lengths) + prompts)


def check_time(name: str, value: float) -> None:
    """Raise ConfigError for a time that is negative, infinite or not a number."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} is {value!r}; it must be a finite time of at least 0")


def read_lengths(path: Path, max_items: int = MAX_ITEMS) -> list[int]:
    """Generated tokens of the first items of a trace, clipped to [2, 1000] as the public ones do.

    The file is a JSON list of ``[prompt_size, generated_tokens]``. Raises ConfigError for a file
    that is not, naming the item.
    """
    items = read_json(path)
    if not isinstance(items, list) or not items:
        raise ConfigError(f"trace {path} must be a list of [prompt_size, generated_tokens]")
    return [_length(item, f"trace {path}, item {i}") for i, item in enumerate(items[:max_items])]


def _length(item: Any, where: str) -> int:
    if not isinstance(item, list) or len(item) < 2:
        raise ConfigError(f"{where}: {item!r} is not [prompt_size, generated_tokens]")
    for name, value in zip(("prompt_size", "generated_tokens"), item, strict=False):
        if type(value) is not int or value < 0:
            raise ConfigError(f"{where}: {name} is {value!r}; a whole number of at least 0")
    generated: int = item[1]
    return min(max(generated, SHORTEST), LONGEST)


def arrivals_us(size: int, rps: float, group: int) -> list[float]:
    """Arrival of each microbatch: groups of ``group`` share one, the rest of a division is at 0.

    Gaps are exponential with mean 1/rps from NumPy's legacy generator with seed 42, and gap i
    follows group i, so the first group arrives at 0. ``rps`` 0 means that all are there.
    """
    check_time("rps", rps)
    if rps == 0:
        return [0.0] * size
    gaps_us = _exponential_gaps(size, rps)
    arrivals = [0.0] * size
    now_us = 0.0
    for index in range(size // group):
        arrivals[index * group : (index + 1) * group] = [now_us] * group
        now_us += gaps_us[index]
    return arrivals


def _exponential_gaps(size: int, rps: float) -> list[float]:
    import numpy as np

    gaps = np.random.RandomState(SEED).exponential(scale=1 / rps, size=size)
    return [gap * 1000000 for gap in gaps.tolist()]
