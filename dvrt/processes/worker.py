"""Workers as their parent sees them: started by a nursery, waited for, ended.

Two nurseries keep this contract: ``nursery.Nursery`` (processes) and ``task_nursery.TaskNursery``
(tasks of this process).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExit:
    """How a worker ended: an exit code or a signal; neither when nobody could find out.

    ``last_words`` is the end of what it wrote to stdout and stderr.
    """

    code: int | None = None
    signal: int | None = None
    reason: str
    last_words: str = ""

    @property
    def is_clean(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        words = self.last_words.strip()
        return f"{self.reason}; it wrote last:\n{words}" if words else self.reason


class Worker(ABC):
    """One worker. ``exit`` is None while it lives; ``is_paused`` while it is stopped (SIGSTOP)."""

    name: str
    pid: int
    exit: WorkerExit | None = None
    is_paused: bool = False

    @abstractmethod
    async def wait(self) -> WorkerExit:
        """How it ended. Any number of tasks may wait; cancelling one harms nothing."""

    @abstractmethod
    def terminate(self) -> None:
        """Ask it to end: its main coroutine is cancelled. Harmless when it has ended."""

    @abstractmethod
    def kill(self) -> None:
        """End it now, without goodbyes. Harmless when it has ended."""


PauseCallback = Callable[[Worker, bool], None]


def start_ticks(pid: int) -> int | None:
    """When a process of this machine began, in ticks since the machine did; None without one.

    Together with the pid this is one process and no other.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


class WorkerNursery(ABC):
    """Starts workers and ends them all when it closes. An async context manager."""

    @abstractmethod
    async def spawn(
        self,
        target: str,
        arguments: object,
        *,
        name: str,
        deadline_s: float = 120.0,
        on_pause: PauseCallback | None = None,
    ) -> Worker:
        """Start ``await target(arguments)`` in a worker; target is ``package.module:function``.

        Returns when the worker exists; its failures, a target that cannot be imported among
        them, are seen by ``wait``. ``on_pause(worker, True)`` is called when it is stopped by a
        signal, ``(worker, False)`` when it goes on. Raises StageFailed when no worker could be
        started within the deadline.
        """

    @abstractmethod
    async def adopt(self, name: str, pid: int, started: int) -> Worker:
        """Take in a worker that another nursery has started, which is no more, as its own.

        ``started`` is what ``start_ticks`` said of it. Raises StageFailed when it is not there.
        """

    @abstractmethod
    async def aclose(self, *, limit_s: float = 5.0) -> None:
        """Terminate all workers, wait for them, kill those left after ``limit_s``.

        Cancelled, it kills them all at once. Twice is harmless.
        """

    @abstractmethod
    def abort(self) -> None:
        """Kill all workers now; never waits."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
