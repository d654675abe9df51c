"""docs/paper.md: every figure with its picture, the paper's number beside ours, and what differs.

Made of the data files alone: the same files give the same page.
"""

from __future__ import annotations

from collections.abc import Iterator

from dvrt.bench.figures.catalog import FIGURES
from dvrt.bench.figures.figure import Figure, Findings, Row

HEAD = """\
# The paper's figures

DéjàVu (Strati et al., ICML 2024) beside this repository, as far as it goes without a GPU. This page
and its pictures are made by `make figures` (`python -m dvrt figures`) from the files in
`figures/data`. What takes more than seconds is made again with `--fresh` only.

How far a number of ours goes:

- **derived**: from peak rates of hardware; nothing ran.
- **simulated**: a simulator in virtual time, on derived step times unless it says otherwise.
- **emulated**: the real runtime (controller, workers, links, scheduler) under virtual time, its
  devices replaced by ones that only take the derived time.
- **measured**: real processes and real bytes on the CPU named with it.

None of them is a measurement on the paper's hardware, so equal numbers prove less than they seem
to. Numbers of the paper are as printed in its text; figures are numbered as in the ICML version.
"""
TABLE_HEAD = ("| what | paper | ours | how far |", "|---|---|---|---|")
MISSING = "not measured yet"


def make_page(findings: Findings, pictures: str) -> str:
    """The whole page; ``pictures`` is the folder of the pictures as seen from it."""
    lines = [HEAD, "## In short", "", *_summary(findings)]
    for figure in FIGURES:
        lines += ["", *_section(figure, findings, pictures)]
    return "\n".join(lines) + "\n"


def _summary(findings: Findings) -> Iterator[str]:
    yield "| figure | what | paper | ours | how far |"
    yield "|---|---|---|---|---|"
    for figure in FIGURES:
        name = figure.title.partition(":")[0]
        rows = [row for row in _rows(figure, findings) if row.is_headline]
        for at, row in enumerate(rows):
            yield f"| {'' if at else name} {_cells(row)}"


def _section(figure: Figure, findings: Findings, pictures: str) -> Iterator[str]:
    yield f"## {figure.title}"
    yield ""
    if figure.found(findings):
        yield f"![{figure.title}]({pictures}/{figure.name}.png)"
        yield ""
    yield from TABLE_HEAD
    yield from (_cells(row) for row in _rows(figure, findings))
    if figure.found(findings):
        for note in figure.notes(findings):
            yield ""
            yield note


def _rows(figure: Figure, findings: Findings) -> Iterator[Row]:
    if figure.found(findings):
        yield from figure.rows(findings)
    for source in figure.sources:
        if source.name not in findings:
            command = f"`python -m dvrt figures --fresh --only {figure.name}`"
            what = f"data `{source.name}`, made by {command}"
            yield Row(what=what, ours=MISSING, how="-", is_headline=True)


def _cells(row: Row) -> str:
    return f"| {row.what} | {row.paper or '-'} | {row.ours} | {row.how} |"
