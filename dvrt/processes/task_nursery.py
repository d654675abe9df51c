"""Workers as tasks of this process: the stand-in for processes, in real or virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import traceback

from dvrt.actors.node import Node, household
from dvrt.errors import StageFailed
from dvrt.processes.forked_worker import exit_of
from dvrt.processes.worker import PauseCallback, Worker, WorkerExit, WorkerNursery
from dvrt.processes.worker_process import FAILED, TERMINATED, resolve
from dvrt.wire import decode, encode


class TaskWorker(Worker):
    """``await target(arguments)`` as a task; the nodes that it opens are its own."""

    def __init__(self, name: str, target: str, arguments: object) -> None:
        self.name, self.pid = name, os.getpid()
        self._nodes: dict[Node, None] = {}
        self._is_killed = self._is_terminated = False
        context = contextvars.copy_context()
        context.run(household.set, self._nodes)
        self._task = asyncio.get_running_loop().create_task(
            _run(target, encode(arguments)), name=f"worker {name}", context=context
        )
        self.over: asyncio.Future[WorkerExit] = asyncio.get_running_loop().create_future()
        self._task.add_done_callback(self._ended)

    async def wait(self) -> WorkerExit:
        return await asyncio.shield(self.over)

    def terminate(self) -> None:
        self._is_terminated = True
        self._task.cancel()

    def kill(self) -> None:
        """Its nodes end without goodbyes, and nothing that it still does gets out of them."""
        if self.exit is None:
            self._is_killed = True
            for node in self._nodes:
                node.abort()
            self._task.cancel()

    def _ended(self, task: asyncio.Task[int | None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._is_killed:
            self.exit = exit_of(signal.SIGKILL, b"")
        elif task.cancelled():
            code = TERMINATED if self._is_terminated else FAILED
            self.exit = exit_of(code << 8, b"")
        elif error is not None:
            words = "".join(traceback.format_exception(error))
            self.exit = exit_of(FAILED << 8, words.encode())
        else:
            self.exit = exit_of((task.result() or 0) << 8, b"")
        self.over.set_result(self.exit)

    def __repr__(self) -> str:
        return f"<TaskWorker {self.name} {self.exit.reason if self.exit else 'running'}>"


class TaskNursery(WorkerNursery):
    """Keeps Nursery's contract, except that no worker is ever paused."""

    def __init__(self) -> None:
        self._workers: list[TaskWorker] = []
        self._is_closing = False

    async def spawn(
        self,
        target: str,
        arguments: object,
        *,
        name: str,
        deadline_s: float = 120.0,
        on_pause: PauseCallback | None = None,
    ) -> TaskWorker:
        if self._is_closing:
            raise StageFailed("nursery", text := "the nursery is closed", text=text)
        worker = TaskWorker(name, target, arguments)
        self._workers = [*(each for each in self._workers if each.exit is None), worker]
        return worker

    async def adopt(self, name: str, pid: int, started: int) -> TaskWorker:
        raise StageFailed(name, "a task has ended with the nursery that began it")

    async def aclose(self, *, limit_s: float = 5.0) -> None:
        self._is_closing = True
        try:
            for worker in self._workers:
                worker.terminate()
            await self._wait_workers(limit_s)
        finally:
            self.abort()
            await self._wait_workers(limit_s)

    def abort(self) -> None:
        self._is_closing = True
        for worker in self._workers:
            worker.kill()

    async def _wait_workers(self, limit_s: float) -> None:
        living = [worker.over for worker in self._workers if worker.exit is None]
        if living:
            await asyncio.wait(living, timeout=limit_s)


async def _run(target: str, arguments: bytes) -> int | None:
    return await resolve(target)(decode(arguments))
