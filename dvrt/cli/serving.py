"""Serving over HTTP from the first worker to the last: start, say where, wait, drain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console

import dvrt
from dvrt.cli.display import StartDisplay, workers_table
from dvrt.cli.signals import StopSignals
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError, StageFailed
from dvrt.results import WorkerStatus

if TYPE_CHECKING:
    from dvrt.cluster.engine import Engine

FAREWELL_LIMIT_S = 5.0
"""How long clients of a pipeline that has failed get to hear of it."""


async def serve(options: LaunchOptions, values: dict[str, Any], signals: StopSignals) -> int:
    """Launch ``values`` and serve until a signal, then drain; returns 0.

    Raises ConfigError when it cannot listen, and StageFailed when the pipeline fails.
    """
    from dvrt.serve.server import Server

    console = Console(stderr=True)
    losses = Losses()
    async with AsyncExitStack() as stack:
        with StartDisplay(console) as display:
            losses.then = display.update
            engine = await stack.enter_async_context(
                dvrt.launch(**values, on_progress=losses.notice)
            )
        losses.then = None
        console.print(workers_table(engine.status().workers))
        server = Server(engine, host=options.host, port=options.port, api_key=options.api_key)
        stack.push_async_callback(server.aclose)
        await server.start()
        print(f"serving {engine.model.name} at {server.url}", flush=True)
        with signals.instead() as told:
            lost = await losses.wait_failed(engine, unless=told)
            n_running = engine.status().n_running
            if n_running and lost is None:
                console.print(f"ending {n_running} requests; a second signal stops at once")
            await server.drain(FAREWELL_LIMIT_S if lost else options.drain_limit_s)
    if lost is not None:
        raise StageFailed(lost.name, _why(lost, engine.status().reason))
    return 0


def _why(lost: WorkerStatus, reason: str) -> str:
    text = f"it was lost while serving (pid {lost.pid})"
    return f"{text}, and the cluster gave up: {reason}" if reason else text


class Losses:
    """Takes the engine's news of its workers, and knows when they mean that serving is over."""

    def __init__(self) -> None:
        self.then: Callable[[WorkerStatus], None] | None = None
        self._lost: asyncio.Queue[WorkerStatus] = asyncio.Queue()

    def notice(self, worker: WorkerStatus) -> None:
        """Made to be the engine's ``on_progress``; passes the news on to ``then``."""
        if worker.state == "lost":
            self._lost.put_nowait(worker)
        if self.then is not None:
            self.then(worker)

    async def wait_failed(self, engine: Engine, *, unless: asyncio.Event) -> WorkerStatus | None:
        """The worker whose loss ended the pipeline; None as soon as ``unless`` is set."""
        async with asyncio.TaskGroup() as group:
            told = group.create_task(unless.wait())
            failed = group.create_task(self._wait_failed(engine))
            await asyncio.wait((told, failed), return_when=asyncio.FIRST_COMPLETED)
            told.cancel()
            failed.cancel()
        return None if failed.cancelled() else failed.result()

    async def _wait_failed(self, engine: Engine) -> WorkerStatus:
        while True:
            worker = await self._lost.get()
            if engine.status().state in ("failed", "stopped"):
                return worker


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
