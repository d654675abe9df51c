"""An executor of processes that leaves nothing behind, however it or its program ends.

That of ``concurrent.futures`` has queues with named semaphores, which outlive a program that is
killed, and processes that wait for them for ever.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
PROGRAM = """\
import sys
fd, *sys.path = sys.argv[1:]
from dvrt.process_pool import serve
serve(int(fd))
"""


class ProcessPool(Executor):
    """``n_processes`` of them, started at once; what they run and return is pickled.

    Functions are those that can be imported; the program's own module is not run again. A call
    whose process ends before it raises BrokenExecutor. When the pool's program is killed, its
    processes end themselves. They ignore SIGINT, which a terminal sends to all.
    """

    def __init__(self, n_processes: int) -> None:
        self._idle: SimpleQueue[tuple[subprocess.Popen[bytes], Connection]] = SimpleQueue()
        self._all = [_start() for _ in range(n_processes)]
        for each in self._all:
            self._idle.put(each)
        self._threads = ThreadPoolExecutor(n_processes, thread_name_prefix="process pool")

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._threads.submit(self._call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Without ``wait`` the processes are killed. Returns when they have ended."""
        if not wait:
            for process, _ in self._all:
                process.kill()
        self._threads.shutdown(cancel_futures=cancel_futures)
        for process, pipe in self._all:
            pipe.close()
            process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """After an error nothing is waited for."""
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def _call(self, work: Callable[..., T], args: Any, kwargs: Any) -> T:
        process, pipe = self._idle.get()
        try:
            pipe.send((work, args, kwargs))
            error, result = pipe.recv()
        except (EOFError, OSError) as gone:
            raise BrokenExecutor(f"process {process.pid} ended before its call") from gone
        finally:
            self._idle.put((process, pipe))
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [sys.executable, "-c", PROGRAM, str(theirs.fileno()), *sys.path]
        process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    return process, Connection(ours.detach())


def serve(fd: int) -> None:
    """One call after the other, until the pool or its program has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_pool, args=(fd,), name="pool", daemon=True).start()
    pipe = Connection(fd)
    with suppress(EOFError, OSError):
        while True:
            work, args, kwargs = pipe.recv()
            pipe.send(_outcome(work, args, kwargs))


def _outcome(work: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Exception | None, Any]:
    try:
        return None, work(*args, **kwargs)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error, None


def _end_with_pool(fd: int) -> None:
    """Even in the middle of a call."""
    poll = select.poll()
    poll.register(fd, 0)  # the other end's closing is reported all the same
    poll.poll()
    os._exit(0)
