"""What ``dvrt chaos`` runs; imports the runtime, which the command itself does not."""

from __future__ import annotations

import json as json_format
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dvrt.chaos.campaign import Campaign, Tally
from dvrt.chaos.judge import Verdict
from dvrt.chaos.options import ChaosOptions
from dvrt.chaos.real_run import REAL_KINDS, run_real
from dvrt.chaos.report import as_json, campaign_table, faults_table, real_table
from dvrt.chaos.schedule import KINDS, Schedule
from dvrt.cli.signals import StopSignals, interruptible, run
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.models.check import inspect_checkpoint
from dvrt.models.tiny import write_tiny

LIMIT_S = 30.0
TINY_LAYERS = 5


def tiny_model(stack: ExitStack) -> Path:
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dvrt-"))
    generation = {"eos_token_id": 256}
    return write_tiny(
        Path(directory) / "tiny", n_layers=TINY_LAYERS, tokenizer=True, generation=generation
    )


def run_real_cluster(values: dict[str, Any], options: ChaosOptions, *, as_object: bool) -> bool:
    launched = LaunchOptions.make(**values)
    kinds = options.kinds_of(REAL_KINDS)
    right: list[bool] = []

    async def command(_: StopSignals) -> int:
        report = await run_real(values, seed=options.seed, kinds=kinds, duration_s=options.duration)
        right.append(report.is_right)
        if as_object:
            print(json_format.dumps(as_json(report)))
        else:
            _show(report.faults, report.injected, real_table(report))
        return 0

    code = run(command, loop=launched.loop, limit_s=LIMIT_S)
    if code:
        raise typer.Exit(code)
    return right == [True]


def run_virtual_clusters(
    model: Path, settings: dict[str, Any], options: ChaosOptions, *, as_object: bool
) -> bool:
    if options.replay:
        return _replay(model, Path(options.replay), as_object=as_object)
    LaunchOptions.make(**{"model": str(model), **settings})
    campaign = Campaign(
        model=model,
        n_layers=inspect_checkpoint(model).n_layers,
        kinds=options.kinds_of(KINDS),
        options=settings,
    )
    tally = _run_seeds(campaign, options)
    if as_object:
        print(json_format.dumps(as_json(tally)))
        return not tally.failures
    scripts = [
        f"{'; '.join(failure.faults)}\n{failure.schedule.to_json()}" for failure in tally.failures
    ]
    _show(scripts, tally.injected, campaign_table(tally))
    return not tally.failures


def _run_seeds(campaign: Campaign, options: ChaosOptions) -> Tally:
    seeds = range(options.seed, options.seed + options.seeds)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with interruptible(), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("schedules", total=len(seeds))
        return campaign.run_on_cores(
            seeds,
            jobs=options.jobs,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _replay(model: Path, script: Path, *, as_object: bool) -> bool:
    try:
        schedule = Schedule.from_json(script.read_text())
    except OSError as error:
        raise ConfigError(f"replay is {script}: {error.strerror}") from error
    n_layers = inspect_checkpoint(model).n_layers
    verdict: Verdict = Campaign(model=model, n_layers=n_layers).verdict(schedule)
    if as_object:
        print(json_format.dumps(as_json(verdict)))
    else:
        tally = Tally()
        tally.add(verdict)
        _show(verdict.faults, Counter(verdict.injected), campaign_table(tally))
    return verdict.is_right


def _show(faults: Any, injected: Counter[str], table: Any) -> None:
    console = Console()
    console.print(faults_table(injected))
    console.print(table)
    for fault in faults:
        console.print(fault, highlight=False, markup=False, soft_wrap=True)
