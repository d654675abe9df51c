"""The commands by name."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from dvrt.cli.bench import bench
from dvrt.cli.chaos import chaos
from dvrt.cli.demo import demo
from dvrt.cli.doctor import doctor
from dvrt.cli.figures import figures
from dvrt.cli.launch import launch
from dvrt.cli.plan import plan
from dvrt.cli.profile import profile
from dvrt.cli.rebalance import rebalance
from dvrt.cli.simulate import simulate
from dvrt.cli.version import version
from dvrt.cli.worker import worker

app = typer.Typer(
    name="dvrt",
    help="Serve a large language model over a pipeline of workers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(launch)
app.command()(worker)
app.command()(rebalance)
app.command()(demo)
app.command()(profile)
app.command()(plan)
app.command()(simulate)
app.command()(chaos)
app.command()(figures)
app.command()(doctor)
app.command()(version)
app.add_typer(bench, name="bench")


def run_command(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Usage errors and ``--help`` raise SystemExit themselves."""
    try:
        app(arguments, prog_name="dvrt")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
