"""What a run of faults has shown, as tables for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from dvrt.chaos.campaign import Tally
from dvrt.chaos.judge import Verdict
from dvrt.chaos.real_run import RealReport


def as_json(found: RealReport | Tally | Verdict) -> dict[str, Any]:
    values = asdict(found)
    values["injected"] = dict(Counter(values["injected"]))
    return values


def faults_table(injected: Counter[str]) -> Table:
    """How often each fault was made to happen."""
    table = Table(title="faults", title_justify="left")
    table.add_column("kind")
    table.add_column("times", justify="right")
    for kind, times in sorted(injected.items()):
        table.add_row(kind, str(times))
    return table


def real_table(report: RealReport) -> Table:
    rows = {
        "seed": report.seed,
        "seconds": f"{report.seconds:.1f}",
        "requests": report.n_asked,
        "answered in full": report.n_whole,
        "left by their clients": report.n_left,
        "tokens": report.n_tokens,
        "workers lost": report.n_lost_workers,
        "positions restored": report.restored,
        "positions computed again": report.recomputed,
        "wrong or lost": len(report.faults),
    }
    return _table("requests", rows)


def campaign_table(tally: Tally) -> Table:
    rows = {
        "schedules": tally.n_seeds,
        "requests": tally.n_asked,
        "answered in full": tally.n_whole,
        "tokens": tally.n_tokens,
        "workers lost": tally.n_lost,
        "positions restored": tally.restored,
        "positions computed again": tally.recomputed,
        "schedules that went wrong": len(tally.failures),
    }
    return _table("schedules in virtual time", rows)


def _table(title: str, rows: Mapping[str, object]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("how many", justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table
