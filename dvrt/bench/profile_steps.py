"""Step times of a model's own layers on this machine, with nothing of the runtime around them.

Every step is timed whole, with its first layer only, and at its end (logits and the draw); what
one layer and what a stage costs follow from the differences. All steps take turns, over all batch
sizes where memory holds that many copies of the stage, so that all see the same weather.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from dvrt.planner.predict import StageTimes
from dvrt.planner.step_fit import Sample, StepFit, fit_steps
from dvrt.requests import SamplingParams

if TYPE_CHECKING:
    from dvrt.models.runner import StageRunner
    from dvrt.models.spec import StageSpec

FEWEST_ROUNDS = 3
LEAST_SHARE = 0.1
"""Noise must not make a layer cheaper than this share of an even split of the whole step."""
LEAST_BESIDES = 0.005
"""Nor what a stage adds to its layers cheaper than this share of the whole step."""
GREEDY = SamplingParams(temperature=0.0)

Work = Callable[[], Any]
OnRound = Callable[[str], None]
Key = tuple[str, int, str]
"""(prompt, token or end; length; whole or first)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGrid:
    """What is measured: every batch with every prompt length and context, ``rounds`` times over.

    No round begins after ``batch_limit_s`` a batch once there are FEWEST_ROUNDS.
    """

    batches: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    rounds: int = 9
    batch_limit_s: float = 8.0

    @property
    def longest(self) -> int:
        return max(*self.prompt_lengths, *self.contexts)


@dataclass(slots=True)
class StepSamples:
    """(batch, length, median seconds); prompts are ``batch`` rows, one computed after the other.

    ``prompts`` and ``tokens`` are whole stages without the end, ``*_layer`` one layer, ``*_stage``
    what a stage adds whatever its layers (empty for a stage of one layer); ``ends`` logits and
    draws of the last stage. ``load_s`` has the loads, one a batch.
    """

    prompts: list[Sample] = field(default_factory=list)
    prompt_layer: list[Sample] = field(default_factory=list)
    prompt_stage: list[Sample] = field(default_factory=list)
    tokens: list[Sample] = field(default_factory=list)
    token_layer: list[Sample] = field(default_factory=list)
    token_stage: list[Sample] = field(default_factory=list)
    ends: list[Sample] = field(default_factory=list)
    load_s: list[float] = field(default_factory=list)
    weights_bytes: int = 0


def measure_steps(
    make_spec: Callable[[int], StageSpec],
    grid: StepGrid,
    *,
    at_once: bool = True,
    on_round: OnRound = lambda what: None,
) -> StepSamples:
    """Load the stage that ``make_spec`` gives for each batch size, and time its steps.

    The stage must be the last one of its model. ``at_once`` keeps the stages of all batch sizes.
    Raises ModelError for a model that cannot be run.
    """
    samples = StepSamples()
    for batches in [grid.batches] if at_once else [(batch,) for batch in grid.batches]:
        shown = ", ".join(map(str, batches))
        on_round(f"batches of {shown}: loading")
        stages = [_load(make_spec(batch), grid, samples) for batch in batches]
        limit = time.perf_counter() + grid.batch_limit_s * len(batches)
        for number in range(grid.rounds + 1):
            if number > FEWEST_ROUNDS and time.perf_counter() > limit:
                break
            on_round(f"batches of {shown}: round {number} of {grid.rounds}")
            for stage in stages:
                stage.run_round(number)
        for stage in stages:
            stage.append(samples)
    return samples


def _load(spec: StageSpec, grid: StepGrid, samples: StepSamples) -> _Batch:
    from dvrt.models.runner import StageRunner

    began = time.perf_counter()
    runner = StageRunner(spec)
    samples.load_s.append(time.perf_counter() - began)
    samples.weights_bytes = runner.weights_bytes
    return _Batch(runner, grid)


class _Batch:
    """The steps of one stage with one batch size, and what they took so far."""

    def __init__(self, runner: StageRunner, grid: StepGrid) -> None:
        self._runner, self._grid, self._spec = runner, grid, runner.spec
        self._synchronize = _synchronizer(runner.spec.device)
        self._taken: dict[Key, list[float]] = {}

    def run_round(self, number: int) -> None:
        """Time every step once; round 0 does not count."""
        for key, seconds in self._round(number):
            if number:
                self._taken.setdefault(key, []).append(seconds)

    def _round(self, number: int) -> Iterator[tuple[Key, float]]:
        slot = number % self._spec.batch_size
        for length in self._grid.prompt_lengths:
            work = partial(self._prompt, slot, length)
            yield ("prompt", length, "whole"), self._timed(work)[0]
            yield ("prompt", length, "first"), self._timed_first(work)
        for context in self._grid.contexts:
            work = partial(self._token, context)
            seconds, hidden = self._timed(work)
            yield ("token", context, "whole"), seconds
            yield ("token", context, "first"), self._timed_first(work)
            yield ("end", 1, "whole"), self._timed(partial(self._end, hidden))[0]

    def _timed_first(self, work: Work) -> float:
        with self._runner.first_layer_only():
            return self._timed(work)[0]

    def _timed(self, work: Work) -> tuple[float, Any]:
        self._synchronize()
        began = time.perf_counter()
        value = work()
        self._synchronize()
        return time.perf_counter() - began, value

    def _prompt(self, slot: int, length: int) -> None:
        """One row's prompt in chunks, as the runtime computes it."""
        for start in range(0, length, self._spec.chunk_tokens):
            count = min(self._spec.chunk_tokens, length - start)
            self._runner.chunk(slot, start, count, self._inputs(count))

    def _token(self, context: int) -> Any:
        """One token for each row, at the last position of this context."""
        rows = self._spec.batch_size
        return self._runner.decode(0, [context - 1] * rows, self._inputs(rows))

    def _end(self, hidden: Any) -> None:
        from dvrt.models.sampling import draw

        rows = range(self._spec.batch_size)
        for logits in self._runner.decode_logits(hidden, rows):
            draw(logits, GREEDY, 0, 1, ())

    def _inputs(self, count: int) -> Any:
        if self._spec.is_first:
            return [1] * count
        import torch

        dtype = getattr(torch, self._spec.dtype)
        return torch.ones((count, 1, self._runner.hidden_size), dtype=dtype)

    def append(self, samples: StepSamples) -> None:
        """Add the medians, and what follows from them for a layer and for a stage."""
        medians = {key: statistics.median(values) for key, values in self._taken.items()}
        rows, layers = self._spec.batch_size, self._spec.stop - self._spec.first
        for kind, lengths, times in (
            ("prompt", self._grid.prompt_lengths, rows),
            ("token", self._grid.contexts, 1),
        ):
            for length in lengths:
                whole, first = (medians[kind, length, part] * times for part in ("whole", "first"))
                layer = layer_share(whole, first, layers)
                getattr(samples, f"{kind}s").append((rows, length, whole))
                getattr(samples, f"{kind}_layer").append((rows, length, layer))
                if layers > 1:
                    stage = max(whole - layers * layer, LEAST_BESIDES * whole)
                    getattr(samples, f"{kind}_stage").append((rows, length, stage))
        samples.ends.append((rows, 1, medians["end", 1, "whole"]))


def layer_share(whole_s: float, first_s: float, layers: int) -> float:
    """What one layer costs when ``layers`` take ``whole_s`` and the first one alone ``first_s``."""
    if layers == 1:
        return whole_s
    even = whole_s / layers
    return min(even, max((whole_s - first_s) / (layers - 1), LEAST_SHARE * even))


def _synchronizer(device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFits:
    """Fits through samples; a stage of one layer says nothing of what stages add."""

    prompt: StepFit
    token: StepFit
    head: StepFit
    prompt_stage: StepFit | None
    token_stage: StepFit | None

    def stage_times(self, layers: int) -> StageTimes:
        """Of a last stage with so many layers."""

        def stage_s(layer: StepFit, stage: StepFit | None, rows: int, length: float) -> float:
            besides_s = stage.seconds(rows, length) if stage else 0.0
            return layers * layer.seconds(rows, length) + besides_s + self.head.seconds(rows, 1)

        return StageTimes(
            prompt_s=partial(stage_s, self.prompt, self.prompt_stage),
            token_s=partial(stage_s, self.token, self.token_stage),
        )


def fit_samples(samples: StepSamples) -> StepFits:
    """Fits whose errors are small against the whole step's time, of which they are parts.

    Prompts are computed row by row, so their times have no fixed part.
    """
    single = len({batch for batch, _, _ in samples.tokens}) == 1
    fixed = ("1",) if single else ("1", "b")
    prompts = [seconds for _, _, seconds in samples.prompts]
    tokens = [seconds for _, _, seconds in samples.tokens]
    is_one_layer = not samples.token_stage
    return StepFits(
        prompt=fit_steps(samples.prompt_layer, ("b", "bl", "bll"), prompts),
        token=fit_steps(samples.token_layer, (*fixed, "bl"), tokens),
        head=fit_steps(samples.ends, fixed),
        prompt_stage=(
            None if is_one_layer else fit_steps(samples.prompt_stage, ("b", "bl"), prompts)
        ),
        token_stage=None if is_one_layer else fit_steps(samples.token_stage, fixed, tokens),
    )


def relative_errors(
    seconds: Callable[[int, float], float], samples: Sequence[Sample]
) -> list[float]:
    """Of a prediction for each sample, without a sign."""
    return [abs(seconds(batch, length) / taken - 1) for batch, length, taken in samples]
