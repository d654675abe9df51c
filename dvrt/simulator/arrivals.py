"""The requests of a simulation, one after the other: from a trace, or drawn from a distribution.

Whoever asks for the same load gets the same requests, in every process.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dvrt.errors import ConfigError
from dvrt.planner.workload import Workload, open_workload
from dvrt.wire import message

MAX_REQUESTS = 10**9


class Arrival(NamedTuple):
    """A request: when it comes, the tokens of its prompt and those that it generates."""

    at_s: float
    prompt: int
    output: int


@message("simulator.load")
class Load:
    """``source`` is a trace file, or a distribution as ``open_workload`` takes it.

    A trace is a JSON list, or a file ``*.jsonl`` with one item a line, of ``[prompt, output]`` or
    ``[prompt, output, arrival_s]``, all alike and in order of arrival. ``count`` requests are taken
    (None: as many as the trace has), the trace again and again if it is shorter. ``rate_per_s``
    draws arrivals as a Poisson process; None leaves those of the trace or the distribution's own
    rate, and if there are none, all requests are there at once.
    """

    source: str
    count: int | None = None
    rate_per_s: float | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        if self.count is not None and not 1 <= self.count <= MAX_REQUESTS:
            raise ConfigError(f"{self.count} requests; from 1 to {MAX_REQUESTS:,}")
        rate = self.rate_per_s
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"the rate is {rate}; it must be above 0 requests a second")

    @property
    def is_trace(self) -> bool:
        return "=" not in self.source or Path(self.source).exists()


def arrivals(load: Load) -> Iterator[Arrival]:
    """All requests of a load, in order of arrival. ConfigError names the item that is wrong."""
    if load.is_trace:
        yield from _of_trace(load)
        return
    if load.count is None:
        raise ConfigError("a distribution needs a number of requests")
    workload = open_workload(load.source)
    rate = load.rate_per_s or workload.rate_per_s
    pairs = zip(_moments(rate, load.seed), _lengths(workload, load.seed), strict=False)
    for at_s, (prompt, output) in itertools.islice(pairs, load.count):
        yield Arrival(at_s, prompt, output)


def _lengths(workload: Workload, seed: int) -> Iterator[tuple[int, int]]:
    choose = random.Random(f"{seed} lengths").choice
    while True:
        yield choose(workload.lengths)


def _moments(rate_per_s: float | None, seed: int) -> Iterator[float]:
    """A Poisson process from its first arrival on; without a rate all at 0."""
    if rate_per_s is None:
        yield from itertools.repeat(0.0)
        return
    gap_s = random.Random(f"{seed} gaps").expovariate
    now = 0.0
    while True:
        now += gap_s(rate_per_s)
        yield now


def _of_trace(load: Load) -> Iterator[Arrival]:
    path = Path(load.source)
    moments = None if load.rate_per_s is None else _moments(load.rate_per_s, load.seed)
    last_s = n_taken = 0.0
    while load.count is None or n_taken < load.count:
        begin_s, n_before = last_s, n_taken
        for item in _items(path):
            at_s = begin_s + item.at_s if moments is None else next(moments)
            if at_s < last_s:
                raise ConfigError(f"{path}: an arrival at {item.at_s} comes after a later one")
            last_s, n_taken = at_s, n_taken + 1
            yield Arrival(at_s, item.prompt, item.output)
            if n_taken == load.count:
                return
        if n_taken == n_before:
            raise ConfigError(f"{path} has no requests")
        if load.count is None:
            return


def _items(path: Path) -> Iterator[Arrival]:
    width = 0
    for number, item in enumerate(_raw_items(path)):
        arrival = _checked(item, f"{path}, item {number}")
        width = width or len(item)
        if len(item) != width:
            raise ConfigError(
                f"{path}, item {number}: {item!r}; every item needs the same two or three fields"
            )
        yield arrival


def _raw_items(path: Path) -> Iterator[Any]:
    """Line by line where the file allows it, so that a long trace never is in memory."""
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                yield from (json.loads(line) for line in file if line.strip())
                return
            items = json.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(items, list):
        raise ConfigError(f"{path} must be a list of [prompt, output] or with arrival_s")
    yield from items


def _checked(item: Any, where: str) -> Arrival:
    if not isinstance(item, list) or len(item) not in (2, 3):
        raise ConfigError(f"{where}: {item!r}; expected [prompt, output] or with arrival_s")
    for name, value in zip(("prompt", "output"), item, strict=False):
        if type(value) is not int or not 1 <= value <= 10**9:
            raise ConfigError(f"{where}: {name} is {value!r}; a whole number of at least 1")
    at_s = item[2] if len(item) == 3 else 0.0
    if type(at_s) not in (int, float) or not (math.isfinite(at_s) and at_s >= 0):
        raise ConfigError(f"{where}: arrival_s is {at_s!r}; a number of at least 0")
    return Arrival(float(at_s), item[0], item[1])
