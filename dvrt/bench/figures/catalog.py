"""All figures, in the paper's order."""

from __future__ import annotations

from collections.abc import Iterable

from dvrt.bench.figures import (
    ablation,
    bubbles,
    failures,
    rates,
    step_times,
    streaming,
    swapping,
    sweeps,
    toy_failure,
)
from dvrt.bench.figures.figure import Figure
from dvrt.errors import ConfigError

FIGURES: tuple[Figure, ...] = (
    step_times.FIGURE,
    bubbles.FIGURE,
    toy_failure.FIGURE,
    ablation.FIGURE,
    rates.FIGURE,
    swapping.FIGURE,
    failures.ONE,
    failures.THREE,
    streaming.FIGURE,
    sweeps.FIGURE,
)


def choose(names: Iterable[str]) -> tuple[Figure, ...]:
    """Those of these names, in the paper's order; all without names. ConfigError for others."""
    wanted = set(names)
    known = {figure.name for figure in FIGURES}
    if wanted - known:
        raise ConfigError(f"no figure {min(wanted - known)!r}; one of {', '.join(sorted(known))}")
    return tuple(figure for figure in FIGURES if not wanted or figure.name in wanted)
