"""``dvrt chaos``: faults on purpose, and whether every answer was right all the same."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from dvrt.chaos.options import ChaosOptions
from dvrt.cli.parameters import with_options
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.options import make_options, options_of


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
    from dvrt.cli.chaos_runs import run_real_cluster, run_virtual_clusters, tiny_model

    options = make_options(ChaosOptions, chosen)
    if options.virtual or options.replay:
        with ExitStack() as stack:
            directory = Path(model) if model else tiny_model(stack)
            is_right = run_virtual_clusters(directory, settings, options, as_object=json)
    elif model is None:
        raise ConfigError("model is missing; only virtual clusters need none")
    else:
        is_right = run_real_cluster({"model": model, **settings}, options, as_object=json)
    raise typer.Exit(0 if is_right else 1)
