"""What a figure is: where its numbers come from, how it is drawn, what it says beside the paper.

``Findings`` are the contents of data files by name of their source; one that was never made is not
among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Findings = Mapping[str, Any]

DERIVED, SIMULATED, EMULATED, MEASURED = "derived", "simulated", "emulated", "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data file: how it is made, and how to say so.

    ``make(quick)`` returns what JSON can hold, or None where the measurement does not exist yet.
    A ``slow`` one is made on demand only.
    """

    name: str
    make: Callable[[bool], Mapping[str, Any] | None]
    slow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison. ``paper`` is empty where the paper has no such number."""

    what: str
    paper: str = ""
    ours: str
    how: str
    is_headline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One of the paper's figures.

    ``draw`` puts it on an empty matplotlib figure; ``rows`` and ``notes`` are the page's. All three
    are called only with findings of which at least one of ``sources`` is there.
    """

    name: str
    title: str
    sources: tuple[Source, ...]
    draw: Callable[[Any, Findings], None]
    rows: Callable[[Findings], Iterator[Row]]
    notes: Callable[[Findings], Iterator[str]]
    size: tuple[float, float] = (9.0, 3.4)

    def found(self, findings: Findings) -> bool:
        """Whether there is anything to show."""
        return any(source.name in findings for source in self.sources)


def number(value: float) -> str:
    """Three digits, without an exponent where that is shorter."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(value: float) -> str:
    """A ratio, as in ``1.88x``."""
    return f"{value:,.0f}x" if value >= 100 else f"{value:.2f}x"
