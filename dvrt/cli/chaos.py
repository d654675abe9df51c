"""``dvrt chaos``: faults on purpose, and whether every answer was right all the same."""

from __future__ import annotations

import json as json_format
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dvrt.chaos.campaign import Campaign, Tally
from dvrt.chaos.judge import Verdict
from dvrt.chaos.real_run import REAL_KINDS, run_real
from dvrt.chaos.report import as_json, campaign_table, faults_table, real_table
from dvrt.chaos.schedule import KINDS, Schedule, check_kinds
from dvrt.cli.parameters import with_options
from dvrt.cli.signals import StopSignals, interruptible, run
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.models.check import inspect_checkpoint
from dvrt.models.tiny import write_tiny
from dvrt.options import make_options, option, options_of

LIMIT_S = 30.0
TINY_LAYERS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What happens, for how long, and how often."""

    seed: int = option(0, help="the same seed draws the same faults")
    kinds: str | None = option(
        None,
        help=f"faults, such as kill,slow; of {','.join(KINDS)}",
        otherwise="all that there are",
    )
    duration: float = option(10.0, help="how long faults happen", unit="seconds", low=0.0)
    virtual: bool = option(False, help="whole clusters in one process, in virtual time")
    seeds: int = option(100, help="with virtual: so many schedules, from seed on", low=1)
    jobs: int | None = option(None, help="with virtual: processes", otherwise="cores", low=1)
    replay: str | None = option(None, help="run the schedule in this file, in virtual time")

    def check(self) -> None:
        """Raise ConfigError for a kind that is unknown."""
        self.kinds_of(KINDS)

    def kinds_of(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Raises ConfigError for one that is unknown, or cannot be done here."""
        given = tuple(filter(None, self.kinds.split(","))) if self.kinds is not None else known
        check_kinds(given, known)
        return given


@with_options("model", settings=LaunchOptions, chosen=ChaosOptions)
def chaos(
    *,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help=options_of(LaunchOptions)["model"].help),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    settings: dict[str, Any],
    chosen: dict[str, Any],
) -> None:
    """Serve MODEL, break what can break, and compare every answer with an undisturbed one.

    In virtual time the hash model of MODEL answers, or that of a tiny model. Exit code 1 when an
    answer was wrong or lost.
    """
    options = make_options(ChaosOptions, chosen)
    if options.virtual or options.replay:
        with ExitStack() as stack:
            directory = Path(model) if model else _tiny(stack)
            is_right = _virtual(directory, settings, options, as_object=json)
    elif model is None:
        raise ConfigError("model is missing; only virtual clusters need none")
    else:
        is_right = _real({"model": model, **settings}, options, as_object=json)
    raise typer.Exit(0 if is_right else 1)


def _tiny(stack: ExitStack) -> Path:
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dvrt-"))
    generation = {"eos_token_id": 256}
    return write_tiny(
        Path(directory) / "tiny", n_layers=TINY_LAYERS, tokenizer=True, generation=generation
    )


def _real(values: dict[str, Any], options: ChaosOptions, *, as_object: bool) -> bool:
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


def _virtual(
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
