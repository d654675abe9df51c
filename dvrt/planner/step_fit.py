"""A step's time as a function of batch and length: samples, a fit through them, and its error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dvrt.errors import ConfigError

Sample = tuple[int, int, float]
TERMS = ("1", "b", "bl", "bll")
LARGEST = 10**9
_ERROR_SLACK = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFit:
    """``seconds = c0 + c1 B + c2 B L + c3 B L^2`` for B rows of L tokens, no coefficient negative.

    L is the prompt's length for prompt steps and the context's for token steps. ``samples`` are
    (batch, length, seconds); ``max_relative_error`` is the fit's worst over them. Raises
    ConfigError for values that cannot be and for an error that the samples contradict.
    """

    samples: tuple[Sample, ...]
    coefficients: tuple[float, float, float, float]
    max_relative_error: float

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if len(self.coefficients) != len(TERMS):
            raise ConfigError(f"{len(self.coefficients)} coefficients; {len(TERMS)} are needed")
        if not all(math.isfinite(c) and c >= 0 for c in self.coefficients):
            raise ConfigError(f"coefficients {self.coefficients} must be finite and at least 0")
        if not any(self.coefficients):
            raise ConfigError("all coefficients are 0; a step takes time")
        actual = max(self.relative_errors())
        if abs(actual - self.max_relative_error) > _ERROR_SLACK:
            raise ConfigError(
                f"the fit is off by {actual:.3%} from its samples, "
                f"which contradicts its max_relative_error of {self.max_relative_error:.3%}"
            )

    @property
    def batches(self) -> tuple[int, ...]:
        """The sampled batch sizes, ascending: beyond them the fit only guesses."""
        return tuple(sorted({batch for batch, _, _ in self.samples}))

    def seconds(self, batch: int, length: float) -> float:
        """The time of a step of ``batch`` rows that all have this length."""
        return self.mean_seconds(batch, length, length * length)

    def mean_seconds(self, batch: int, mean_length: float, mean_square: float) -> float:
        """The mean time over rows of unequal lengths, from their first two moments."""
        fixed, per_row, per_token, per_square = self.coefficients
        return fixed + batch * (per_row + per_token * mean_length + per_square * mean_square)

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": [list(sample) for sample in self.samples],
            "coefficients": list(self.coefficients),
            "max_relative_error": self.max_relative_error,
        }

    def relative_errors(self) -> list[float]:
        """Of each sample, without a sign."""
        return [abs(self.seconds(b, n) / seconds - 1) for b, n, seconds in self.samples]


def fit_steps(
    samples: Sequence[Sample],
    terms: Sequence[str] = TERMS,
    scales: Sequence[float] | None = None,
) -> StepFit:
    """The best fit of relative errors by least squares with coefficients that are not negative.

    ``scales`` are what errors are relative to instead of the samples' own times: for the parts of
    a step, the whole.

    With so few terms every subset is tried, which finds the optimum of the constrained problem.
    ``terms`` limits them to what the samples can tell apart. Raises ConfigError for bad samples.
    """
    _check_samples(samples)
    wholes = [seconds for _, _, seconds in samples] if scales is None else scales
    columns = [TERMS.index(term) for term in terms]
    best: tuple[float, tuple[float, ...]] | None = None
    for count in range(1, len(columns) + 1):
        for chosen in itertools.combinations(columns, count):
            candidate = _solve(samples, wholes, chosen)
            if candidate and (best is None or candidate[0] < best[0] * (1 - 1e-9) - 1e-18):
                best = candidate
    if best is None:
        raise ConfigError("no fit through the samples has coefficients of at least 0")
    first, second, third, fourth = (float(f"{value:.9g}") for value in best[1])
    return _with_error(tuple(samples), (first, second, third, fourth))


def _solve(
    samples: Sequence[Sample], wholes: Sequence[float], chosen: Sequence[int]
) -> tuple[float, tuple[float, ...]] | None:
    import numpy as np

    features = np.array([[1.0, b, b * n, b * n * n] for b, n, _ in samples])[:, list(chosen)]
    weighted = features / np.array(wholes)[:, None]
    target = np.array([sample[2] for sample in samples]) / np.array(wholes)
    scale = np.abs(weighted).max(axis=0)
    solution, *_ = np.linalg.lstsq(weighted / scale, target, rcond=None)
    if (solution < 0).any():
        return None
    loss = float(((weighted / scale @ solution - target) ** 2).sum())
    coefficients = [0.0] * len(TERMS)
    for column, value in zip(chosen, solution / scale, strict=True):
        coefficients[column] = float(value)
    return loss, tuple(coefficients)


def _with_error(
    samples: tuple[Sample, ...], coefficients: tuple[float, float, float, float]
) -> StepFit:
    errors = [
        abs(sum(c * f for c, f in zip(coefficients, (1, b, b * n, b * n * n), strict=True)) / s - 1)
        for b, n, s in samples
    ]
    error = round(max(errors), 6)
    return StepFit(samples=samples, coefficients=coefficients, max_relative_error=error)


def scale_samples(fit: StepFit, factor: float, extra_per_token_s: float, phase: str) -> StepFit:
    """The fit with each sample times ``factor`` plus ``extra_per_token_s`` for each token computed.

    ``phase`` is "prompt" (batch times length tokens) or "token" (one a row).
    """
    samples = tuple(
        (b, n, float(f"{s * factor + extra_per_token_s * b * (n if phase == 'prompt' else 1):.9g}"))
        for b, n, s in fit.samples
    )
    used = [term for term, c in zip(TERMS, fit.coefficients, strict=True) if c or term != "bll"]
    return fit_steps(samples, used)


def step_fit_from_json(entry: Any, where: str) -> StepFit:
    """Check and convert; ConfigError names ``where`` in the file it is wrong."""
    try:
        samples = tuple((b, n, float(s)) for b, n, s in entry["samples"])
        first, second, third, fourth = (float(c) for c in entry["coefficients"])
        error = float(entry["max_relative_error"])
    except (TypeError, KeyError, ValueError, OverflowError) as problem:
        raise ConfigError(f"{where}: not a step fit ({problem!r})") from problem
    try:
        return StepFit(
            samples=samples,
            coefficients=(first, second, third, fourth),
            max_relative_error=error,
        )
    except ConfigError as problem:
        raise ConfigError(f"{where}: {problem}") from problem


def _check_samples(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ConfigError("no samples")
    for batch, length, seconds in samples:
        counts = all(type(count) is int and 0 < count <= LARGEST for count in (batch, length))
        if not counts or not 1 / LARGEST**2 < seconds < LARGEST:
            raise ConfigError(
                f"sample {(batch, length, seconds)}: whole batch and length from 1 to "
                f"{LARGEST:,}, and a time above 0"
            )
    known: dict[tuple[int, int], float] = {}
    for batch, length, seconds in samples:
        if known.setdefault((batch, length), seconds) != seconds:
            raise ConfigError(
                f"batch {batch} and length {length} take {known[batch, length]} s and {seconds} s; "
                "two times for one step contradict each other"
            )
