"""Workers as processes, forked by a fork server that has imported what they need.

Knows processes, not actors. Nothing that it starts outlives this process, however this one ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Self

from dvrt.errors import StageFailed
from dvrt.processes.fork_server import Configure, Exited, Failed, Fork, Forked, Paused
from dvrt.processes.forked_worker import ForkedWorker, exit_of
from dvrt.processes.server_process import ServerProcess
from dvrt.processes.worker import PauseCallback, WorkerNursery, start_ticks
from dvrt.processes.worker_process import loop_factory
from dvrt.wire import encode

KILL_LIMIT_S = 5.0
"""How long a killed process is waited for."""


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    """A worker that was asked for and is not there yet."""

    name: str
    on_pause: PauseCallback | None
    worker: asyncio.Future[ForkedWorker]


class Nursery(WorkerNursery):
    """Starts a fork server that imports ``preload``, then forks one worker per ``spawn``.

    Entering does not wait for the imports; spawning does. ``env`` is added to the environment of
    the server and so of all workers, which run on the event loop ``loop``: ``auto``, ``asyncio``
    or ``uvloop``. Should this process die, workers have ``orphan_s`` to end by their leases; then
    the server kills them; if workers may be adopted (``outlives``), it kills only those that are
    stopped for so long, and ends with the last of the others. Should the fork server die, workers
    live on and the next spawn starts another server. SIGINT reaches neither.
    """

    def __init__(
        self,
        *,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        loop: str = "auto",
        orphan_s: float = 5.0,
        outlives: bool = False,
    ) -> None:
        loop_factory(loop)
        self._preload, self._env = tuple(preload), dict(env or {})
        self._loop_kind, self._orphan_s = loop, orphan_s
        self._outlives = outlives
        self._server: ServerProcess | None = None
        self._servers: list[ServerProcess] = []
        self._workers: dict[int, ForkedWorker] = {}
        self._wishes: dict[int, _Wish] = {}
        self._tickets = count(1)
        self._turn = asyncio.Lock()
        self._failure: str | None = None
        self._is_closing = False

    @property
    def server_pid(self) -> int | None:
        """The fork server's process, while there is one."""
        return self._server.pid if self._server is not None else None

    async def __aenter__(self) -> Self:
        self._ensure_server()
        return self

    async def spawn(
        self,
        target: str,
        arguments: object,
        *,
        name: str,
        deadline_s: float = 120.0,
        on_pause: PauseCallback | None = None,
    ) -> ForkedWorker:
        encoded = encode(arguments)
        try:
            async with asyncio.timeout(deadline_s):
                async with self._turn:
                    return await self._fork(target, encoded, name, on_pause)
        except TimeoutError:
            raise StageFailed(name, f"not started within {deadline_s:g} s") from None

    async def _fork(
        self, target: str, arguments: bytes, name: str, on_pause: PauseCallback | None
    ) -> ForkedWorker:
        server = self._ensure_server()
        ticket = next(self._tickets)
        worker: asyncio.Future[ForkedWorker] = asyncio.get_running_loop().create_future()
        self._wishes[ticket] = _Wish(name, on_pause, worker)
        try:
            server.send(
                Fork(ticket=ticket, target=target, arguments=arguments, loop=self._loop_kind)
            )
        except StageFailed:
            del self._wishes[ticket]
            raise
        try:
            return await worker
        except asyncio.CancelledError:
            if worker.done() and not worker.cancelled() and worker.exception() is None:
                worker.result().kill()
            raise

    async def adopt(self, name: str, pid: int, started: int) -> ForkedWorker:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            raise StageFailed(name, f"there is no process {pid}: {error.strerror}") from None
        try:
            if await asyncio.to_thread(start_ticks, pid) != started:
                raise StageFailed(name, f"process {pid} is another one")
        except BaseException:
            os.close(descriptor)
            raise
        worker = self._workers[pid] = ForkedWorker(name, pid, descriptor, None)
        return worker

    def _ensure_server(self) -> ServerProcess:
        if self._is_closing:
            raise StageFailed("nursery", text := "the nursery is closed", text=text)
        if self._failure is not None:
            text = f"the fork server failed: {self._failure}"
            raise StageFailed("fork server", self._failure, text=text)
        if self._server is None:
            server = ServerProcess(env=self._env, receive=self._receive, lost=self._lost)
            self._server = server
            self._servers = [*(s for s in self._servers if not s.is_reaped), server]
            configure = Configure(
                preload=self._preload,
                orphan_s=self._orphan_s,
                parent=os.getpid(),
                outlives=self._outlives,
            )
            server.send(configure)
        return self._server

    def _receive(self, event: object, descriptor: int | None) -> None:
        match event:
            case Forked():
                assert descriptor is not None
                self._forked(event, descriptor)
            case Exited(pid=pid) if pid in self._workers:
                self._workers.pop(pid).ended(exit_of(event.status, event.output))
            case Paused(pid=pid) if pid in self._workers:
                self._workers[pid].paused(event.is_paused)
            case Failed(ticket=None):
                self._failure = event.reason
                self._refuse_all(event.reason)
            case Failed(ticket=int(ticket)) if ticket in self._wishes:
                _refuse(self._wishes.pop(ticket), event.reason)

    def _forked(self, event: Forked, descriptor: int) -> None:
        wish = self._wishes.pop(event.ticket, None)
        name, on_pause = (wish.name, wish.on_pause) if wish is not None else ("unwanted", None)
        worker = ForkedWorker(name, event.pid, descriptor, on_pause)
        self._workers[event.pid] = worker
        if wish is None or wish.worker.done():
            worker.kill()
        else:
            wish.worker.set_result(worker)

    def _lost(self) -> None:
        self._server = None
        self._refuse_all("the fork server ended")

    def _refuse_all(self, reason: str) -> None:
        for wish in self._wishes.values():
            _refuse(wish, reason)
        self._wishes.clear()

    async def aclose(self, *, limit_s: float = 5.0) -> None:
        self._is_closing = True
        self._refuse_all("the nursery closes")
        try:
            for worker in self._workers.values():
                worker.terminate()
            await self._wait_workers(limit_s)
        finally:
            self.abort()
            try:
                await self._wait_workers(KILL_LIMIT_S)
            finally:
                await self._end_servers()

    def abort(self) -> None:
        self._is_closing = True
        for worker in self._workers.values():
            worker.kill()

    async def _wait_workers(self, limit_s: float) -> None:
        living = [worker.over for worker in self._workers.values() if worker.exit is None]
        if living:
            await asyncio.wait(living, timeout=limit_s)

    async def _end_servers(self) -> None:
        for server in self._servers:
            server.end()
        for server in self._servers:
            await server.wait_end(KILL_LIMIT_S)


def _refuse(wish: _Wish, reason: str) -> None:
    if not wish.worker.done():
        wish.worker.set_exception(StageFailed(wish.name, reason))
