"""A worker in a process of its own, as its nursery sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from dvrt.processes.worker import PauseCallback, Worker, WorkerExit
from dvrt.processes.worker_process import LEASE_ENDED, TERMINATED

REPORT_S = 0.5
"""How long the fork server's word on a worker that has ended is waited for."""
_MEANINGS = {0: "ended normally", LEASE_ENDED: "its lease ended", TERMINATED: "terminated"}


class ForkedWorker(Worker):
    """Owns ``descriptor``, which refers to the process even when its pid is used again."""

    def __init__(
        self, name: str, pid: int, descriptor: int, on_pause: PauseCallback | None
    ) -> None:
        self.name, self.pid = name, pid
        self._descriptor = descriptor
        self._on_pause = on_pause
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[WorkerExit] = self._loop.create_future()
        self._late: asyncio.TimerHandle | None = None
        self._loop.add_reader(descriptor, self._gone)

    async def wait(self) -> WorkerExit:
        return await asyncio.shield(self.over)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def paused(self, is_paused: bool) -> None:
        """The fork server saw it stopped, or going on."""
        self.is_paused = is_paused
        if self._on_pause is not None:
            self._on_pause(self, is_paused)

    def ended(self, how: WorkerExit) -> None:
        """It is known how it ended; the first to know is believed."""
        if self.exit is not None:
            return
        self.exit = how
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._late is not None:
            self._late.cancel()
        self.over.set_result(how)

    def _signal(self, number: signal.Signals) -> None:
        if self.exit is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def _gone(self) -> None:
        """The kernel says that it has ended; the fork server says how, if it lives."""
        self._loop.remove_reader(self._descriptor)
        unknown = WorkerExit(reason="ended, nobody knows how: the fork server is gone")
        self._late = self._loop.call_later(REPORT_S, self.ended, unknown)

    def __repr__(self) -> str:
        state = self.exit.reason if self.exit else "paused" if self.is_paused else "running"
        return f"<ForkedWorker {self.name} {self.pid} {state}>"


def exit_of(status: int, output: bytes) -> WorkerExit:
    """What a status of ``waitpid`` and the end of a worker's output say."""
    words = output.decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = _signal_name(-code)
        reason = "terminated" if name == "SIGTERM" else f"killed by {name}"
        return WorkerExit(signal=-code, reason=reason, last_words=words)
    reason = _MEANINGS.get(code, f"exit code {code}")
    return WorkerExit(code=code, reason=reason, last_words=words)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
