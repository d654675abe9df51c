"""A picture of a simulation: latencies by percentile, waits by place, and busy stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dvrt.planner.output import import_figure_class, save_figure
from dvrt.simulator.fleet import Outcome
from dvrt.simulator.report import utilisation
from dvrt.simulator.tally import LATENCIES

SHARES = [share / 200 for share in range(201)]


def draw_outcome(outcome: Outcome, path: Path, *, title: str) -> None:
    """Write the picture in the form that the suffix names. ConfigError without matplotlib."""
    figure = import_figure_class()(figsize=(13, 4), layout="constrained")
    latencies, waits, stages = figure.subplots(1, 3)
    figure.suptitle(title)
    _draw_latencies(latencies, outcome)
    _draw_waits(waits, outcome)
    shares = utilisation(outcome.tally, outcome.deployment)
    stages.bar(list(shares), list(shares.values()))
    stages.set(title="stages: share of time computing", ylim=(0, 1))
    stages.tick_params(axis="x", rotation=45)
    save_figure(figure, path)


def _draw_latencies(axes: Any, outcome: Outcome) -> None:
    for name in LATENCIES:
        sketch = outcome.tally.sketches[name]
        if sketch.n_values:
            seconds = [sketch.quantile(share) for share in SHARES]
            axes.plot(seconds, SHARES, label=name.removesuffix("_s"))
    axes.set(title="latencies", xlabel="seconds", ylabel="share of requests", xscale="log")
    axes.legend()


def _draw_waits(axes: Any, outcome: Outcome) -> None:
    sketches = outcome.tally.sketches
    names = [name for name in sketches if name.startswith("wait_") and sketches[name].n_values]
    places = [name.removeprefix("wait_").removesuffix("_s") for name in names]
    axes.bar(places, [sketches[name].mean for name in names])
    axes.set(title="where a request is, on average", ylabel="seconds")
