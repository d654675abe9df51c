"""Fig. 7: what each of the library's optimisations brings, by ``bench modes``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dvrt.bench.figures.figure import MEASURED, Figure, Findings, Row
from dvrt.bench.figures.reports import Known, bench_notes, ratio_rows
from dvrt.bench.figures.store import bench_source

MODES = ("naive", "buffered", "layered", "overlapped")
SHAPES = {"gpt2": "GPT2-1.5B", "opt13b": "OPT-13B", "opt66b": "OPT-66B"}


def _known() -> Iterator[tuple[str, Known]]:
    for shape, name in SHAPES.items():
        yield (
            f"{shape}_buffered_vs_naive",
            Known(
                what=f"{name}: buffered copies over naive",
                how=MEASURED,
                paper="95x (its text, for all)",
                is_headline=shape == "opt66b",
            ),
        )
    for shape, name in SHAPES.items():
        yield (
            f"{shape}_overlap_vs_buffered",
            Known(
                what=f"{name}: overlapped over buffered",
                how=MEASURED,
                paper="1.4x",
                is_headline=shape == "opt66b",
            ),
        )


KNOWN: Mapping[str, Known] = dict(_known())


def draw(figure: Any, findings: Findings) -> None:
    results = findings["modes"]["results"]
    axes = figure.subplots()
    for at, mode in enumerate(MODES):
        ms = [1000 * results[shape][mode]["step_s"]["median"] for shape in SHAPES]
        axes.bar([place + 0.2 * (at - 1.5) for place in range(len(SHAPES))], ms, 0.2, label=mode)
    for place, shape in enumerate(SHAPES):
        compute_ms = 1000 * results[shape]["compute_s"]
        label = "compute alone" if not place else None
        axes.hlines(compute_ms, place - 0.45, place + 0.45, color="black", label=label)
    names = [
        f"{name}\n{results[shape]['layers']} of {results[shape]['layers_of_model']} layers"
        for shape, name in SHAPES.items()
    ]
    axes.set_xticks(range(len(SHAPES)), names)
    axes.set(yscale="log", ylabel="ms a token step")
    axes.legend(fontsize=8)


def rows(findings: Findings) -> Iterator[Row]:
    yield from ratio_rows(findings["modes"], KNOWN, others=MEASURED)


def notes(findings: Findings) -> Iterator[str]:
    yield (
        "Copies, messages and the second process are real, over TCP on one machine; the compute "
        "beside them is a device that sleeps for as long as an A100-80 would read the weights."
    )
    yield (
        "The ratio to naive is not the paper's: its naive mode pays a GPU copy for each contiguous "
        "run, ours a message through Python and a socket. What both have is the count: two copies "
        "a step against thousands."
    )
    yield from bench_notes(findings["modes"])


FIGURE = Figure(
    name="fig07",
    title="Fig. 7: the optimisations one by one",
    sources=(bench_source("modes"),),
    draw=draw,
    rows=rows,
    notes=notes,
)
