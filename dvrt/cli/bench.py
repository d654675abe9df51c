"""``dvrt bench``: measurements by name."""

from __future__ import annotations

import typer


def bench(name: str) -> None:
    """Measure."""
    raise typer.Exit(2)
