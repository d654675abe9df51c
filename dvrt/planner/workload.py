"""What is asked of a deployment: prompt and output lengths, and how often requests come.

A workload is a list of (prompt, output) pairs, from a trace or from a distribution without any
randomness in it, and the moments that the cost model needs. Knows no model and no machine.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

from dvrt.errors import ConfigError
from dvrt.planner.model_info import read_json

POINTS = 256
CONTEXT_POINTS = 48
PROMPT_POINTS = 16
LONGEST = 10**9
LARGEST_CV = 100
SHORTEST_CLIP = 2


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Pairs of prompt and output lengths; ``rate_per_s`` is None when all work is there at once.

    Raises ConfigError for no requests, lengths below 1 and rates that are not above 0.
    """

    lengths: tuple[tuple[int, int], ...]
    rate_per_s: float | None = None

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ConfigError("the workload has no requests")
        for prompt, output in self.lengths:
            if not (1 <= prompt <= LONGEST and 1 <= output <= LONGEST):
                raise ConfigError(
                    f"lengths {(prompt, output)}: both at least 1, at most {LONGEST:,}"
                )
        rate = self.rate_per_s
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"the rate is {rate}; it must be above 0 requests a second")

    @cached_property
    def mean_prompt(self) -> float:
        return self._mean(lambda prompt, output: prompt)

    @cached_property
    def mean_square_prompt(self) -> float:
        return self._mean(lambda prompt, output: prompt * prompt)

    @cached_property
    def mean_output(self) -> float:
        return self._mean(lambda prompt, output: output)

    @cached_property
    def mean_context(self) -> float:
        """The context of a token step, averaged over all generated tokens."""
        steps = self._mean(lambda prompt, output: prompt * output + output * (output + 1) / 2)
        return steps / self.mean_output

    @cached_property
    def has_equal_outputs(self) -> bool:
        return len({output for _, output in self.lengths}) == 1

    @cached_property
    def longest_context(self) -> int:
        return max(prompt + output for prompt, output in self.lengths)

    @cached_property
    def longest_prompt(self) -> int:
        return max(prompt for prompt, _ in self.lengths)

    @cached_property
    def contexts(self) -> tuple[float, ...]:
        """Quantiles of the context over all generated tokens, each standing for as many of them."""
        spans = sorted((prompt, prompt + output) for prompt, output in self.lengths)
        points = [start + (end - start) * (k + 0.5) / 8 for start, end in spans for k in range(8)]
        weights = [(end - start) / 8 for start, end in spans for _ in range(8)]
        return _weighted_quantiles(points, weights, CONTEXT_POINTS)

    @cached_property
    def prompt_quantiles(self) -> tuple[float, ...]:
        """Lengths of prompts from short to long, each the mean of as many."""
        prompts = sorted(prompt for prompt, _ in self.lengths)
        count = min(PROMPT_POINTS, len(prompts))
        cuts = [len(prompts) * k // count for k in range(count + 1)]
        return tuple(math.fsum(prompts[a:b]) / (b - a) for a, b in itertools.pairwise(cuts))

    def mean_chunks(self, chunk_tokens: int) -> float:
        """Chunks of a prompt."""
        return self._mean(lambda prompt, output: math.ceil(prompt / chunk_tokens))

    def pairs(self, count: int) -> tuple[tuple[int, int], ...]:
        """At most ``count`` of the pairs, spread evenly over the list."""
        if len(self.lengths) <= count:
            return self.lengths
        step = len(self.lengths) / count
        return tuple(self.lengths[int((k + 0.5) * step)] for k in range(count))

    def describe(self) -> str:
        rate = "all there at once" if self.rate_per_s is None else f"{self.rate_per_s:g} requests/s"
        return (
            f"prompts of {self.mean_prompt:.0f} and outputs of {self.mean_output:.0f} tokens on "
            f"average, contexts up to {self.longest_context}, {rate}"
        )

    def _mean(self, value: Callable[[int, int], float]) -> float:
        return math.fsum(value(prompt, output) for prompt, output in self.lengths) / len(
            self.lengths
        )


def _weighted_quantiles(points: list[float], weights: list[float], count: int) -> tuple[float, ...]:
    order = sorted(range(len(points)), key=points.__getitem__)
    sums = list(itertools.accumulate(weights[i] for i in order))
    quantiles = []
    at = 0
    for k in range(count):
        wanted = sums[-1] * (k + 0.5) / count
        while sums[at] < wanted:
            at += 1
        quantiles.append(points[order[at]])
    return tuple(quantiles)


def fixed_workload(prompt: int, output: int, rate_per_s: float | None = None) -> Workload:
    """Every request alike."""
    return Workload(lengths=((prompt, output),), rate_per_s=rate_per_s)


def lognormal_workload(
    prompt: float,
    output: float,
    *,
    prompt_cv: float = 0.0,
    output_cv: float = 1.0,
    clip: tuple[int, int] | None = None,
    rate_per_s: float | None = None,
) -> Workload:
    """Lognormal lengths with these means and coefficients of variation, outputs clipped if asked.

    Evenly spaced quantiles, paired in a fixed random order, so the same arguments give the same
    workload everywhere.
    """
    prompts = _lognormal_quantiles(prompt, prompt_cv)
    outputs = _lognormal_quantiles(output, output_cv)
    if clip is not None:
        outputs = [min(max(n, clip[0]), clip[1]) for n in outputs]
    order = random.Random(42)
    order.shuffle(prompts)
    order.shuffle(outputs)
    return Workload(lengths=tuple(zip(prompts, outputs, strict=True)), rate_per_s=rate_per_s)


def _lognormal_quantiles(mean: float, cv: float) -> list[int]:
    if not 1 <= mean <= LONGEST:
        raise ConfigError(f"a mean length of {mean}; at least 1, at most {LONGEST:,}")
    if not 0 <= cv <= LARGEST_CV:
        raise ConfigError(f"a coefficient of variation of {cv}; at least 0, at most {LARGEST_CV}")
    if cv == 0:
        return [round(mean)] * POINTS
    sigma = math.sqrt(math.log(1 + cv * cv))
    log_mean = math.log(mean) - sigma * sigma / 2
    normal = NormalDist(log_mean, sigma)
    quantiles = (normal.inv_cdf((k + 0.5) / POINTS) for k in range(POINTS))
    return [max(1, round(math.exp(quantile))) for quantile in quantiles]


def open_workload(text: str) -> Workload:
    """A trace file, or a distribution such as ``prompt=1000,output=210,cv=1,rate=0.5``.

    Keys: prompt, output (means), prompt_cv, cv (of outputs), longest (outputs are clipped to
    [2, longest], as the paper does), rate (requests a second). Without a cv lengths are fixed.
    Raises ConfigError for anything else.
    """
    if "=" not in text or Path(text).exists():
        return read_workload(Path(text))
    defaults = {"prompt": 1000.0, "prompt_cv": 0.0, "cv": 0.0}
    given = parse_numbers(text, (*defaults, "output", "longest", "rate"))
    values = defaults | given
    if "output" not in given:
        raise ConfigError(f"workload {text!r} needs output=, the mean number of tokens generated")
    rate, longest = given.get("rate"), given.get("longest")
    if longest is not None and not (SHORTEST_CLIP <= longest <= LONGEST and longest % 1 == 0):
        raise ConfigError(f"longest={longest:g}; a whole number from {SHORTEST_CLIP} up")
    if values["cv"] == 0 and values["prompt_cv"] == 0:
        fixed = round(values["output"])
        if longest is not None and fixed > longest:
            raise ConfigError(f"output={fixed} is fixed, and longer than longest={longest:g}")
        return fixed_workload(round(values["prompt"]), fixed, rate)
    return lognormal_workload(
        values["prompt"],
        values["output"],
        prompt_cv=values["prompt_cv"],
        output_cv=values["cv"],
        clip=None if longest is None else (SHORTEST_CLIP, int(longest)),
        rate_per_s=rate,
    )


def parse_numbers(text: str, known: tuple[str, ...]) -> dict[str, float]:
    """``a=1,b=2`` as a dictionary; ConfigError names unknown keys and values that are no number."""
    numbers = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key.strip() not in known:
            raise ConfigError(f"{key.strip()!r} in {text!r}: known keys are {', '.join(known)}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(f"{key.strip()}={value!r} is not a number")
        numbers[key.strip()] = number
    return numbers


def read_workload(path: Path) -> Workload:
    """A trace: a JSON list of ``[prompt, output]`` or ``[prompt, output, arrival_s]``.

    With arrivals the rate is the mean one. ConfigError names the item that is missing a field or
    has a negative one.
    """
    items = read_json(path)
    if not isinstance(items, list) or not items:
        raise ConfigError(
            f"{path} must be a list of [prompt, output] or [prompt, output, arrival_s]"
        )
    width = len(items[0]) if isinstance(items[0], list) else 0
    for index, item in enumerate(items):
        _check_item(item, width, f"{path}, item {index}")
    rate = _mean_rate([item[2] for item in items], path) if width == 3 else None
    return Workload(lengths=tuple((item[0], item[1]) for item in items), rate_per_s=rate)


def _check_item(item: Any, width: int, where: str) -> None:
    if not isinstance(item, list) or len(item) != width or width not in (2, 3):
        raise ConfigError(f"{where}: {item!r}; every item needs the same two or three fields")
    for name, value in zip(("prompt", "output"), item, strict=False):
        if type(value) is not int or value < 1:
            raise ConfigError(f"{where}: {name} is {value!r}; a whole number of at least 1")
    if width == 3 and (
        type(item[2]) not in (int, float) or not math.isfinite(item[2]) or item[2] < 0
    ):
        raise ConfigError(f"{where}: arrival_s is {item[2]!r}; a number of at least 0")


def _mean_rate(arrivals: list[float], path: Path) -> float | None:
    span = max(arrivals) - min(arrivals)
    if len(arrivals) < 2 or span == 0:
        return None
    return (len(arrivals) - 1) / span
