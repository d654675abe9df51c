"""Serving over HTTP from the first worker to the last: start, say where, wait, drain."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console

import dvrt
from dvrt.cli.display import StartDisplay, workers_table
from dvrt.cli.signals import StopSignals
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError, DvrtError

if TYPE_CHECKING:
    from dvrt.cluster.engine import Engine

FAREWELL_LIMIT_S = 5.0
"""How long clients of a pipeline that has failed get to hear of it."""


async def serve(options: LaunchOptions, values: dict[str, Any], signals: StopSignals) -> int:
    """Launch ``values`` and serve until a signal, then drain; returns 0.

    Raises ConfigError when it cannot listen, and what ended the cluster when that
    fails.
    """
    from dvrt.serve.server import Server

    console = Console(stderr=True)
    async with AsyncExitStack() as stack:
        with StartDisplay(console) as display:
            engine = await stack.enter_async_context(
                dvrt.launch(**values, on_progress=display.update)
            )
        console.print(workers_table(engine.status().workers))
        server = Server(engine, host=options.host, port=options.port, api_key=options.api_key)
        stack.push_async_callback(server.aclose)
        await server.start()
        print(f"serving {engine.model.name} at {server.url}", flush=True)
        with signals.instead() as told:
            failure = await _failure(engine, unless=told)
            n_running = engine.status().n_running
            if n_running and failure is None:
                console.print(f"ending {n_running} requests; a second signal stops at once")
            await server.drain(FAREWELL_LIMIT_S if failure else options.drain_limit_s)
    if failure is not None:
        raise failure
    return 0


async def _failure(engine: Engine, *, unless: asyncio.Event) -> DvrtError | None:
    """What ended the cluster; None as soon as ``unless`` is set."""
    async with asyncio.TaskGroup() as group:
        told = group.create_task(unless.wait())
        over = group.create_task(engine.wait_over())
        await asyncio.wait((told, over), return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        over.cancel()
    return None if over.cancelled() else over.result()


def refuse_unservable(options: LaunchOptions) -> None:
    """Raise ConfigError, before anything is loaded, for a key or an address that the HTTP server
    would not take."""
    if options.api_key is not None and not options.api_key.strip():
        raise ConfigError("api_key is empty; leave it out to serve without a key (DVRT_API_KEY)")
    host, port = options.host, options.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except UnicodeError as error:
        raise ConfigError(f"host is {host!r}, which is no name of a machine: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
