"""A sweep's results: the public CSV and JSON, the speed-ups that its plot prints, and the plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvrt.planner.output import import_figure_class, save_figure
from dvrt.simulator.compat_sweep import METHODS, Best

COLUMNS = ("Num_machines", *METHODS, "Cost_baseline", "Cost_baseline_dp", "Cost_dv")
Rows = Sequence[Sequence[Best]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedUps:
    """Largest ratios of makespans at equal machine counts; None where no count has both methods."""

    dp_over_baseline: float | None
    dv_over_baseline: float | None
    dv_over_dp: float | None


PAPER_SPEED_UPS = SpeedUps(dp_over_baseline=2.29, dv_over_baseline=4.2, dv_over_dp=2.22)


def speed_ups(rows: Rows) -> SpeedUps:
    """Over machine counts from 2 at which both methods fit."""
    return SpeedUps(
        dp_over_baseline=_largest_ratio(rows, 0, 1),
        dv_over_baseline=_largest_ratio(rows, 0, 2),
        dv_over_dp=_largest_ratio(rows, 1, 2),
    )


def _largest_ratio(rows: Rows, slow: int, fast: int) -> float | None:
    ratios = [
        row[slow].makespan_s / row[fast].makespan_s
        for row in rows
        if row[0].machines > 1 and row[slow].run and row[fast].run
    ]
    return max(ratios, default=None)


def write_csv(path: Path, rows: Rows) -> None:
    """The public columns behind an index, makespans in seconds; 0.0 where nothing fits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *COLUMNS])
        for index, row in enumerate(rows):
            makespans = [best.makespan_s for best in row]
            writer.writerow([index, row[0].machines, *makespans, *(best.cost for best in row)])


def sweep_to_json(rows: Rows) -> list[Any]:
    """The public JSON: for each machine count the best configuration of each method."""
    return [[row[0].machines, {best.method: best.to_json() for best in row}] for row in rows]


def write_outputs(csv_path: Path, rows: Rows) -> Path:
    """Write the CSV and the JSON beside it; returns the JSON's path."""
    write_csv(csv_path, rows)
    json_path = csv_path.with_suffix(".json")
    json_path.write_text(json.dumps(sweep_to_json(rows), indent=2) + "\n")
    return json_path


def draw_sweep(rows: Rows, path: Path, *, title: str, machine_cost: float = 0.0) -> None:
    """Makespans as bars, three a machine count; below them costs in machine hours if priced."""
    panels = [("makespan, s", [[best.makespan_s for best in row] for row in rows])]
    if machine_cost:
        hours = [[best.cost / machine_cost for best in row] for row in rows]
        panels.append(("cost, machine hours", hours))
    figure = import_figure_class()(figsize=(9, 3.5 * len(panels)), layout="constrained")
    for number, (label, values) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        for at, name in enumerate(("Baseline", "Baseline-DP", "DéjàVu")):
            places = [index + 0.28 * (at - 1) for index in range(len(rows))]
            axes.bar(places, [row[at] for row in values], 0.28, label=name)
        axes.set_xticks(range(len(rows)), [row[0].machines for row in rows])
        axes.set_xlabel("machines")
        axes.set_ylabel(label)
    figure.axes[0].set_title(title)
    figure.axes[0].legend()
    save_figure(figure, path)
