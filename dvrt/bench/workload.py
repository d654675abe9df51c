"""Which requests are sent when: Poisson arrivals or a trace; pure, reproducible by seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError

_WORDS = (
    *("the", "a", "one", "old", "small", "river", "house", "road", "garden", "winter", "morning"),
    *("cat", "dog", "child", "friend", "walks", "sees", "finds", "keeps", "builds", "under"),
    *("over", "near", "with", "and", "then", "quietly", "again", "slowly", "bread", "water"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request: when it arrives, counted from the beginning, and how long it is in tokens."""

    number: int
    arrival_s: float
    n_prompt: int
    n_output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """A line of a trace; ``arrival_s`` is None where the trace has lengths only."""

    n_prompt: int
    n_output: int
    arrival_s: float | None = None


def read_trace(file: Path) -> list[Length]:
    """A JSON list of [prompt, output] or [prompt, output, arrival in seconds].

    Raises ConfigError naming the file and the line at fault.
    """
    try:
        lines = json.loads(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"trace {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"trace {file} is not JSON: {error}") from error
    if not isinstance(lines, list) or not lines:
        raise ConfigError(f"trace {file} is not a list of requests")
    lengths = [_length(file, number, line) for number, line in enumerate(lines)]
    n_timed = sum(length.arrival_s is not None for length in lengths)
    if n_timed not in (0, len(lengths)):
        raise ConfigError(
            f"trace {file}: only {n_timed} of {len(lengths)} requests have an arrival"
        )
    return lengths


def _length(file: Path, number: int, line: Any) -> Length:
    is_list = isinstance(line, list) and len(line) in (2, 3)
    if not is_list or not all(type(size) is int and size > 0 for size in line[:2]):
        raise ConfigError(f"trace {file}, request {number}: {line!r} is no [prompt, output]")
    arrival = line[2] if len(line) == 3 else None
    if arrival is not None and not _is_time(arrival):
        raise ConfigError(f"trace {file}, request {number}: arrival {arrival!r} is no time")
    return Length(n_prompt=line[0], n_output=line[1], arrival_s=arrival)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def plan_requests(
    lengths: Sequence[Length], *, n_requests: int, rate_per_s: float, seed: int
) -> list[Planned]:
    """``n_requests`` in order of arrival, lengths repeated from the start where there are too few.

    Lengths with arrivals keep them, counted from the earliest, and are not repeated; else the gaps
    between arrivals are exponential with mean ``1 / rate_per_s`` (infinite: all at once), the first
    before the first request. Raises ConfigError for values that cannot be.
    """
    if n_requests < 1:
        raise ConfigError(f"{n_requests} requests; there must be at least one")
    if not rate_per_s > 0:
        raise ConfigError(f"a rate of {rate_per_s} requests a second; it must be above 0")
    if lengths[0].arrival_s is not None:
        return _as_recorded(lengths, n_requests)
    chance, now, planned = random.Random(f"arrivals {seed}"), 0.0, []
    for number in range(n_requests):
        now += chance.expovariate(rate_per_s) if math.isfinite(rate_per_s) else 0.0
        length = lengths[number % len(lengths)]
        planned.append(_planned(number, now, length))
    return planned


def _as_recorded(lengths: Sequence[Length], n_requests: int) -> list[Planned]:
    timed = sorted((length.arrival_s or 0.0, i) for i, length in enumerate(lengths))[:n_requests]
    begin = timed[0][0]
    return [_planned(number, at - begin, lengths[i]) for number, (at, i) in enumerate(timed)]


def _planned(number: int, arrival_s: float, length: Length) -> Planned:
    return Planned(
        number=number, arrival_s=arrival_s, n_prompt=length.n_prompt, n_output=length.n_output
    )


def prompt_ids(planned: Planned, *, seed: int, first: int, stop: int) -> list[int]:
    """Random token ids in [first, stop), its own for each request."""
    chance = random.Random(f"ids {seed} {planned.number}")
    return [chance.randrange(first, stop) for _ in range(planned.n_prompt)]


def prompt_text(planned: Planned, *, seed: int) -> str:
    """As many common words as the prompt has tokens: about as many tokens for most tokenizers."""
    chance = random.Random(f"words {seed} {planned.number}")
    return " ".join(chance.choices(_WORDS, k=planned.n_prompt))
