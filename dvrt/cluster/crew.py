"""The workers that a launch has started itself: begun, followed to their ends, killed at need.

Knows processes (or their stand-ins) by name; knows nothing of stages.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from dvrt.errors import DvrtError, StageFailed
from dvrt.processes.worker import Worker, WorkerExit

Spawn = Callable[[str], Awaitable[Worker]]
"""Starts the worker of this name. Raises StageFailed."""

ExitCallback = Callable[[str, "WorkerExit | DvrtError"], None]


async def spawn_nobody(name: str) -> Worker:
    """A Spawn for as long as no worker can be started."""
    raise StageFailed(name, "no worker can be started yet")


class Crew:
    """Hires workers by name; ``on_exit`` hears once of each how it ended, or why it never began."""

    def __init__(self, spawn: Spawn, on_exit: ExitCallback) -> None:
        self._spawn, self._on_exit = spawn, on_exit
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lives: Counter[str] = Counter()
        self._n_places = 0
        self._adopted: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Whether this worker was hired and has not ended."""
        return name in self._tasks

    def was_hired(self, name: str) -> bool:
        """Whether this worker was hired at some time."""
        return name.partition(".")[0] in self._lives

    def hire(self, instead_of: str | None = None) -> str:
        """Start a worker, at once; its name. That of worker-1's successor is worker-1.2."""
        if instead_of is None or not self.was_hired(instead_of):
            base = self._next_place()
        else:
            base = instead_of.partition(".")[0]
        self._lives[base] += 1
        name = base if self._lives[base] == 1 else f"{base}.{self._lives[base]}"
        self._begin(name, partial(self._spawn, name))
        return name

    def recall(self, names: Iterable[str]) -> None:
        """These were hired in an earlier life: nobody else gets their names."""
        for name in names:
            base, _, life = name.partition(".")
            self._lives[base] = max(self._lives[base], int(life or 1))

    def adopt(self, worker: Worker) -> None:
        """Follow a worker that an earlier life has hired."""
        self.recall([worker.name])
        self._adopted.add(worker.name.partition(".")[0])
        self._workers[worker.name] = worker
        self._begin(worker.name, partial(_at_once, worker))

    def _next_place(self) -> str:
        while (base := f"worker-{self._n_places}") in self._adopted:
            self._n_places += 1
        self._n_places += 1
        return base

    def _begin(self, name: str, spawn: Callable[[], Awaitable[Worker]]) -> None:
        task = asyncio.get_running_loop().create_task(
            self._follow(name, spawn), name=f"crew {name}"
        )
        self._tasks[name] = task

    def kill(self, name: str) -> None:
        """End a worker without goodbyes, also one that has not begun; harmless for others."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.kill()
        elif name in self._tasks:
            self._tasks.pop(name).cancel()

    async def aclose(self) -> None:
        """Follow nobody any more; ending the workers is the nursery's part."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, name: str, spawn: Callable[[], Awaitable[Worker]]) -> None:
        end: WorkerExit | DvrtError
        try:
            worker = self._workers[name] = await spawn()
            end = await worker.wait()
        except DvrtError as error:
            end = error
        finally:
            self._workers.pop(name, None)
            self._tasks.pop(name, None)
        self._on_exit(name, end)


async def _at_once(worker: Worker) -> Worker:
    return worker
