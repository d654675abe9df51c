"""``dvrt worker``: one worker by hand, for a pipeline that another process has launched."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dvrt.cli.parameters import with_options
from dvrt.cli.signals import StopSignals, run
from dvrt.config import WorkerOptions
from dvrt.options import make_options

CLEANUP_LIMIT_S = 15.0


@with_options(settings=WorkerOptions)
def worker(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    settings: dict[str, Any],
) -> None:
    """Add a worker by hand to a pipeline of --external-workers."""
    options = make_options(WorkerOptions, settings)

    async def command(_signals: StopSignals) -> int:
        from dvrt.cluster.join import join_cluster

        host, port = options.address()
        await join_cluster(
            host,
            port,
            secret=options.secret,
            wait_s=options.wait_s,
            heartbeat_s=options.heartbeat_s,
            lease_s=options.lease_s,
        )
        return 0

    raise typer.Exit(run(command, loop=options.loop, limit_s=CLEANUP_LIMIT_S))
