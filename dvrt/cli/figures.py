"""``dvrt figures``: the paper's figures that need no GPU, and the page about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dvrt.cli.signals import interruptible


def figures(
    *,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="a figure, such as fig08; may be repeated")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="folder of pictures and data; paper.md goes beside it")
    ] = Path("docs/figures"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="run the benchmarks and long simulations again")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="with --fresh: the benchmarks' quick form")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Make the paper's figures again, as far as they go without a GPU, and docs/paper.md.

    Data that takes more than seconds is read from OUT/data unless --fresh.
    """
    from dvrt.bench.figures.making import make_figures

    console = Console(stderr=True, soft_wrap=True)
    with interruptible():
        page = make_figures(
            out, only=only or (), fresh=fresh, quick=quick, say=lambda line: console.print(line)
        )
    print(page)
