"""SIGINT and SIGTERM: the first asks a command to end, the second makes it end.

Knows how processes and terminals end, and nothing of engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from dvrt.errors import DvrtError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GIVE_UP_S = 3.0
"""How long a cancelled command may take to close what it opened; imports can hold it up."""
SAME_SIGNAL_S = 0.1
"""Signals this close together are one: make and timeout pass on what their group got already."""

Handler = Callable[[int, FrameType | None], Any] | int | None


def exit_on_signals() -> None:
    """Before there is anything to clean up, a signal exits at once.

    Also undoes what a shell does to its background jobs, which is to ignore SIGINT.
    """
    for number in SIGNALS:
        signal.signal(number, _exit_now)


def _exit_now(number: int, _frame: FrameType | None) -> NoReturn:
    """No SystemExit: whatever is being imported or torn down could swallow it, or complain."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
            stream.flush()
    os._exit(128 + number)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """For synchronous code that runs event loops of its own, with asyncio.run.

    SIGINT and SIGTERM end its loop in order, a second one at once; then whatever processes are
    left are killed, and this one exits.
    """
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGINT)  # asyncio.run knows what to do with this one

    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        yield
    except KeyboardInterrupt:
        kill_descendants()
        sys.exit(128 + (received or [signal.SIGINT])[0])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class StopSignals:
    """Receives signals for a command that runs on an event loop.

    The first cancels the command, or sets the event of the ``instead`` block that it is in. The
    second, or an end that takes longer than ``limit_s`` (of a cancelled command GIVE_UP_S), kills
    all child processes and exits.
    """

    def __init__(self, *, limit_s: float) -> None:
        self.first: signal.Signals | None = None
        self._limit_s = limit_s
        self._received_at = 0.0
        self._handlers: dict[signal.Signals, Handler] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._instead: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            # What is stopping has its exit code already; a late signal must not change it.
            signal.signal(number, signal.SIG_IGN if self.first else handler)

    @property
    def exit_code(self) -> int:
        """128 and the first signal's number, as shells have it; 0 before any signal."""
        return 128 + self.first if self.first else 0

    async def guard(self, command: Coroutine[Any, Any, int]) -> int:
        """The command's exit code. When a signal has cancelled it, exits with the signal's.

        By then the command has closed what it opened. Threads that still import something, for
        seconds perhaps, are not waited for.
        """
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await command
        except (asyncio.CancelledError, DvrtError):
            if self.first is None:
                raise
            self._leave()

    @contextlib.contextmanager
    def instead(self) -> Iterator[asyncio.Event]:
        """Within this block the first signal sets the event and cancels nothing."""
        self._instead = asyncio.Event()
        try:
            yield self._instead
        finally:
            self._instead = None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.first is not None:
            if time.monotonic() - self._received_at > SAME_SIGNAL_S:
                self._force()
            return
        self.first = signal.Signals(number)
        self._received_at = time.monotonic()
        if self._loop is None or self._loop.is_closed():
            sys.exit(self.exit_code)
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        limit_s = min(self._limit_s, GIVE_UP_S) if self._instead is None else self._limit_s
        asyncio.get_running_loop().call_later(limit_s, self._force)
        if self._instead is not None:
            self._instead.set()
        elif self._task is not None:
            self._task.cancel()

    def _force(self) -> NoReturn:
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # the cursor that a live display hides
        self._leave()

    def _leave(self) -> NoReturn:
        kill_descendants()
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            sys.stdout.flush()
        os._exit(self.exit_code)


def run(
    command: Callable[[StopSignals], Coroutine[Any, Any, int]], *, loop: str, limit_s: float
) -> int:
    """Run a command on a fresh event loop of the kind ``loop``; the exit code that fits its end."""
    from dvrt.processes.worker_process import loop_factory

    with StopSignals(limit_s=limit_s) as stop:
        with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
            return runner.run(stop.guard(command(stop)))


def kill_descendants() -> None:
    """SIGKILL every descendant of this process, and those that they start meanwhile."""
    for _ in range(10):
        alive = descendants(os.getpid())
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """The living children of ``pid``, and theirs; zombies are not living."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found += frontier
    return found
