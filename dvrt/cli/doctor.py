"""``dvrt doctor``: what is here, what is missing, and the command that brings it."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dvrt.cli.doctor_checks import CHECKS, Finding, State, exactness
from dvrt.cli.version import versions

_STYLES = {State.OK: "green", State.MISSING: "dim", State.LOW: "yellow", State.BROKEN: "bold red"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="also try whether exact mode holds on this machine")
    ] = False,
) -> None:
    """Look at packages, UCX, devices and limits. Ends with 1 when something is broken."""
    checks = (*CHECKS, exactness) if exact else CHECKS
    findings = [finding for check in checks for finding in check()]
    if json:
        print(json_format.dumps(report(findings)))
    else:
        show(findings, Console())
    raise typer.Exit(any(finding.state is State.BROKEN for finding in findings))


def report(findings: list[Finding]) -> dict[str, Any]:
    """The object of ``--json``."""
    return {
        "versions": versions(),
        "findings": [
            {
                "name": finding.name,
                "state": finding.state.value,
                "value": finding.value,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def show(findings: list[Finding], console: Console) -> None:
    """A table, and below it the commands, which fit no column."""
    table = Table("what", "state", "found", title="dvrt doctor", title_justify="left")
    for finding in findings:
        style = _STYLES[finding.state]
        state = f"[{style}]{finding.state.value}[/{style}]"
        table.add_row(escape(finding.name), state, escape(finding.value))
    console.print(table)
    for finding in findings:
        if finding.remedy:
            console.print(f"{finding.name}:", style="bold", highlight=False, markup=False)
            console.print(f"    {finding.remedy}", highlight=False, markup=False, soft_wrap=True)
