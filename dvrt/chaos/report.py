"""What a run of faults has shown, as tables for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from rich.table import Table

from dvrt.chaos.campaign import Failure, Tally
from dvrt.chaos.judge import Verdict
from dvrt.chaos.real_run import RealReport

COUNTED = {"injected", "mix"}
"""Fields of names that come as how often each occurred."""


def as_json(found: RealReport | Tally | Verdict) -> dict[str, Any]:
    values = {each.name: _plain(getattr(found, each.name)) for each in fields(found)}
    for name in COUNTED & values.keys():
        values[name] = dict(Counter(getattr(found, name)))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return asdict(value) if isinstance(value, Failure) else value


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
        **dict(sorted(tally.mix.items())),
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
