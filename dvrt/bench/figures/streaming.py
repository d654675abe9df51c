"""Fig. 25: what streaming every new entry away costs, by ``bench overhead``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dvrt.bench.figures.figure import MEASURED, Figure, Findings, Row
from dvrt.bench.figures.reports import Known, bench_notes, ratio_rows
from dvrt.bench.figures.store import bench_source

SIDES = {"none": "not streamed", "stream": "to another process", "file": "to a durable file"}
KNOWN: Mapping[str, Known] = {
    "stream_slowdown": Known(
        what="a token step, streamed to another process, over not",
        how=MEASURED,
        paper="within 1.02x",
        is_headline=True,
    ),
    "file_slowdown": Known(
        what="the same, to a file that is flushed each step",
        how=MEASURED,
        paper="within 1.02x",
        is_headline=True,
    ),
}


def draw(figure: Any, findings: Findings) -> None:
    results = findings["overhead"]["results"]
    axes = figure.subplots()
    repeats = [results[side]["step_ms"]["repeats"] for side in SIDES]
    axes.boxplot(repeats, orientation="horizontal", showfliers=False, widths=0.6)
    axes.set_yticks(range(1, len(SIDES) + 1), list(SIDES.values()))
    axes.invert_yaxis()
    axes.set(xlabel="ms a token step; boxes: the middle half of the blocks")


def rows(findings: Findings) -> Iterator[Row]:
    yield from ratio_rows(findings["overhead"], KNOWN, others=MEASURED)


def notes(findings: Findings) -> Iterator[str]:
    yield (
        "A GPT-2-124M shape on the CPU, two cores for both sides; the paper streams from GPUs, "
        "whose copies take no compute. Single blocks vary far more than the difference, on a busy "
        "machine many times as much: then a file can look faster than nothing at all, and the "
        "ratios say little. benchmarks.md has more runs, quiet ones among them."
    )
    yield from bench_notes(findings["overhead"])


FIGURE = Figure(
    name="fig25",
    title="Fig. 25: streaming beside compute",
    sources=(bench_source("overhead"),),
    draw=draw,
    rows=rows,
    notes=notes,
    size=(9.0, 2.2),
)
