"""The whole work: data files, then pictures, then the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from dvrt.bench.figures.catalog import FIGURES, choose
from dvrt.bench.figures.figure import Figure, Findings, Source
from dvrt.bench.figures.page import make_page
from dvrt.bench.figures.store import Store
from dvrt.errors import ConfigError
from dvrt.planner.output import import_figure_class, save_figure

DPI = 80


def make_figures(
    out: Path,
    *,
    only: Iterable[str] = (),
    fresh: bool = False,
    quick: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make ``out/data`` and ``out/*.png`` of the chosen figures, and the page beside ``out``.

    The page is of all figures, from the data that is there. Slow data is made again if ``fresh``,
    by the benchmarks' quick form if ``quick``. Returns the page's path. ConfigError without
    matplotlib, for unknown names, for a folder that cannot be and files that do not make sense.
    """
    chosen = choose(only)
    import_figure_class()
    _make_folder(out)
    store = Store(out / "data")
    for source in _sources(chosen):
        store.obtain(source, fresh=fresh, quick=quick, say=say)
    findings = read_findings(store)
    page = out.parent / "paper.md"
    try:
        for figure in chosen:
            if figure.found(findings):
                draw(figure, findings, out / f"{figure.name}.png")
        page.write_text(make_page(findings, out.name))
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"a file in {out / 'data'} is not what this version writes ({error!r}); "
            "make it again with --fresh"
        ) from error
    return page


def _make_folder(out: Path) -> None:
    """Before anything is computed for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out is {out}, which cannot be made: {error.strerror}") from error


def read_findings(store: Store) -> Findings:
    """The content of every data file that is there."""
    found = {source.name: store.read(source) for source in _sources(FIGURES)}
    return {name: content for name, content in found.items() if content is not None}


def draw(figure: Figure, findings: Findings, path: Path) -> None:
    """Write one picture."""
    canvas = import_figure_class()(figsize=figure.size, dpi=DPI, layout="constrained")
    figure.draw(canvas, findings)
    save_figure(canvas, path)


def _sources(figures: Iterable[Figure]) -> Iterable[Source]:
    """Each once, by name."""
    return {source.name: source for figure in figures for source in figure.sources}.values()
