"""What ``bench load`` found: each outcome, their distributions, as JSON and as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from dvrt.bench.common import Measured, quantile
from dvrt.bench.load_options import LoadOptions
from dvrt.bench.workload import Planned

METRICS = ("first_token_s", "per_token_s", "normalised_s", "total_s")
TITLES = {
    "first_token_s": "time to first token",
    "per_token_s": "time per output token",
    "normalised_s": "normalised latency (per token)",
    "total_s": "whole request",
}
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request's fate. Seconds from its due time; ``error`` is None where it was answered.

    ``late_s`` is how long after its due time the client sent it: large values mean that the client
    was the bottleneck, and the figures are worthless.
    """

    planned: Planned
    late_s: float
    first_token_s: float | None = None
    total_s: float | None = None
    n_prompt: int = 0
    n_generated: int = 0
    error: str | None = None

    @property
    def per_token_s(self) -> float | None:
        """Mean time between tokens after the first; None for fewer than two."""
        if self.first_token_s is None or self.total_s is None or self.n_generated < 2:
            return None
        return (self.total_s - self.first_token_s) / (self.n_generated - 1)

    @property
    def normalised_s(self) -> float | None:
        """End-to-end latency per generated token (the paper's §5.1)."""
        return self.total_s / self.n_generated if self.total_s and self.n_generated else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """All outcomes and what they amount to."""

    options: LoadOptions
    outcomes: Sequence[Outcome]
    duration_s: float

    @property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @property
    def errors(self) -> dict[str, int]:
        """How many requests failed in which way."""
        kinds = Counter(outcome.error for outcome in self.outcomes if outcome.error is not None)
        return dict(sorted(kinds.items()))

    def distribution(self, metric: str) -> dict[str, float | None]:
        """Quantiles, mean and maximum of one of METRICS over the answered requests, in seconds;
        None where no request has a value."""
        found = [getattr(outcome, metric) for outcome in self.answered]
        values = sorted(value for value in found if value is not None)
        if not values:
            return dict.fromkeys([*QUANTILES, "mean", "max"])
        return {
            **{name: quantile(values, share) for name, share in QUANTILES.items()},
            "mean": math.fsum(values) / len(values),
            "max": values[-1],
        }

    def summary(self) -> dict[str, Any]:
        """Everything but the single outcomes, fit for JSON."""
        n_generated = sum(outcome.n_generated for outcome in self.answered)
        return {
            "options": _plain(replace(self.options, api_key=None)),
            "requests": len(self.outcomes),
            "answered": len(self.answered),
            "errors": self.errors,
            "duration_s": self.duration_s,
            "requests_per_s": len(self.answered) / self.duration_s,
            "output_tokens_per_s": n_generated / self.duration_s,
            "latest_send_s": max(outcome.late_s for outcome in self.outcomes),
            **{metric: self.distribution(metric) for metric in METRICS},
        }

    def measured(self) -> Measured:
        """The summary, and each request."""
        each = [_plain(outcome) for outcome in self.outcomes]
        return Measured(
            results={**self.summary(), "each": each},
            notes=["nothing is predicted: the server and its machine are not known here"],
        )

    def table(self) -> Table:
        """The summary for people; times in milliseconds."""
        table = Table(title=f"{len(self.answered)} of {len(self.outcomes)} requests answered")
        table.add_column("milliseconds")
        columns = [*QUANTILES, "mean", "max"]
        for column in columns:
            table.add_column(column, justify="right")
        for metric in METRICS:
            spread = self.distribution(metric)
            cells = [_milliseconds(spread[column]) for column in columns]
            table.add_row(TITLES[metric], *cells)
        failed = ", ".join(f"{count} {kind}" for kind, count in self.errors.items())
        summary = self.summary()
        table.caption = (
            f"{summary['requests_per_s']:.2f} requests/s, "
            f"{summary['output_tokens_per_s']:.1f} tokens/s in {self.duration_s:.1f} s; "
            f"errors: {failed or 'none'}; latest send {summary['latest_send_s'] * 1e3:.1f} ms"
        )
        return table


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON values; what is infinite becomes text."""
    return {
        key: str(item) if isinstance(item, Path) or item == math.inf else item
        for key, item in asdict(value).items()
    }


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"
