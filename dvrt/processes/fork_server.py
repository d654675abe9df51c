"""The fork server: one small process that imports what all workers need and forks them.

It has one thread and no event loop, so forking it is safe. It passes on what its workers write,
keeps the end of it, and reports at once how each of them ended. When its parent is gone it gives
the workers a while to end by themselves, kills those that do not, and ends. Where a later life of
the parent may adopt them, it kills only those that are stopped, which could not end by themselves.
"""

from __future__ import annotations

import gc
import io
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from importlib import import_module
from typing import Any, NoReturn

from dvrt.errors import WireError
from dvrt.processes.worker_process import FAILED, run_to_exit
from dvrt.wire import decode, encode, message

MAX_REQUEST_BYTES = 100_000
TAIL_BYTES = 8192
"""How much of the end of a worker's output is kept."""
_READ_BYTES = 1 << 16


@message("nursery.configure")
class Configure:
    """The first request: import these, and kill orphaned workers after ``orphan_s``; with
    ``outlives`` only those that are stopped for so long."""

    preload: tuple[str, ...]
    orphan_s: float
    parent: int
    outlives: bool = False


@message("nursery.fork")
class Fork:
    """Fork a worker that runs ``target`` with the encoded message ``arguments``."""

    ticket: int
    target: str
    arguments: bytes
    loop: str


@message("nursery.end")
class End:
    """Kill what is left of the workers, and end."""


@message("nursery.forked")
class Forked:
    """A worker exists; a descriptor of its process travels along."""

    ticket: int
    pid: int


@message("nursery.failed")
class Failed:
    """The worker of this ticket could not be made; without a ticket, none ever can."""

    ticket: int | None
    reason: str


@message("nursery.paused")
class Paused:
    """A worker was stopped by a signal, or goes on."""

    pid: int
    is_paused: bool


@message("nursery.exited")
class Exited:
    """A worker has ended; ``status`` as of ``waitpid``, ``output`` the end of what it wrote."""

    pid: int
    status: int
    output: bytes


class _Child:
    """One worker as the fork server sees it: the pipe it writes to, and the end of its output."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self.pipe = pid, pipe
        self.tail = b""
        self.stopped_at: float | None = None
        self.is_killed = False

    def drain(self) -> bool:
        """Pass on what it wrote. False when the pipe is over."""
        while True:
            try:
                data = os.read(self.pipe, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.tail = (self.tail + data)[-TAIL_BYTES:]
            _pass_on(data)


class ForkServer:
    """Serves one parent over ``control``, a sequenced-packet socket, until the parent is gone."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        self._pipes: dict[int, _Child] = {}
        self._poll = select.poll()
        self._orphan_s = 0.0
        self._outlives = False
        self._parent = -1
        self._failure: str | None = None
        self._lost_at: float | None = None
        self._wakeup, self._woken = os.pipe()

    def run(self) -> None:
        """Return when the parent and all workers are gone."""
        self._take_signals()
        self._poll.register(self._control, select.POLLIN)
        while self._lost_at is None or self._children:
            for fd, _ in self._poll.poll(self._timeout_ms()):
                self._on_ready(fd)
            for child in self._children.values():
                if self._end_of(child) <= time.monotonic():
                    os.kill(child.pid, signal.SIGKILL)
                    child.is_killed = True

    def _end_of(self, child: _Child) -> float:
        """When a worker is to be killed; never, while there is a parent to do it."""
        if self._lost_at is None or child.is_killed:
            return math.inf
        if not self._outlives:
            return self._lost_at + self._orphan_s
        since = child.stopped_at
        return math.inf if since is None else max(since, self._lost_at) + self._orphan_s

    def _take_signals(self) -> None:
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self._lose_parent())
        self._poll.register(self._wakeup, select.POLLIN)

    def _timeout_ms(self) -> float | None:
        next_end = min(map(self._end_of, self._children.values()), default=math.inf)
        if next_end == math.inf:
            return None
        return max(0.0, next_end - time.monotonic()) * 1000 + 1

    def _on_ready(self, fd: int) -> None:
        if fd == self._control.fileno():
            self._take_request()
        elif fd == self._wakeup:
            os.read(fd, _READ_BYTES)
            self._reap()
        elif fd == self._parent:
            self._lose_parent()
        elif fd in self._pipes and not self._pipes[fd].drain():
            self._close_pipe(self._pipes[fd])

    def _take_request(self) -> None:
        try:
            data = self._control.recv(MAX_REQUEST_BYTES)
        except OSError:
            data = b""
        if not data:
            self._lose_parent()
            return
        try:
            request = decode(data)
        except WireError as error:
            self._report(
                Failed(ticket=None, reason=f"the fork server cannot read a request: {error}")
            )
            return
        if isinstance(request, Configure):
            self._configure(request)
        elif isinstance(request, Fork) and self._failure is not None:
            self._report(Failed(ticket=request.ticket, reason=self._failure))
        elif isinstance(request, Fork):
            self._fork(request)
        elif isinstance(request, End):
            self._orphan_s, self._outlives = 0.0, False
            self._lose_parent()

    def _configure(self, request: Configure) -> None:
        self._orphan_s, self._outlives = request.orphan_s, request.outlives
        try:
            self._parent = os.pidfd_open(request.parent)
        except ProcessLookupError:
            self._lose_parent()
            return
        self._poll.register(self._parent, select.POLLIN)
        for name in request.preload:
            try:
                import_module(name)
            except Exception as error:
                traceback.print_exc()
                self._failure = f"{name} cannot be imported: {error!r}"
                self._report(Failed(ticket=None, reason=self._failure))
                return
        gc.collect()
        gc.freeze()

    def _fork(self, request: Fork) -> None:
        out, into = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # not for the server's handler
        try:
            pid = os.fork()
            if not pid:
                os.close(out)
                self._become_worker(request, into)
        except OSError as error:
            os.close(out)
            text = f"no process could be forked: {error}"
            self._report(Failed(ticket=request.ticket, reason=text))
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.close(into)
        os.set_blocking(out, False)
        child = _Child(pid, out)
        self._children[pid] = self._pipes[out] = child
        self._poll.register(out, select.POLLIN)
        process = os.pidfd_open(pid)
        self._report(Forked(ticket=request.ticket, pid=pid), process)
        os.close(process)

    def _become_worker(self, request: Fork, output: int) -> NoReturn:
        """In the new process: let go of everything of the server's, run the target, end."""
        code = FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.dup2(output, 1)
            os.dup2(output, 2)
            for fd in (output, self._wakeup, self._woken, self._parent, *self._pipes):
                os.close(fd)
            self._control.close()
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(line_buffering=True)
            code = run_to_exit(request.target, request.arguments, loop=request.loop)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if not pid:
                return
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                self._paused(pid, is_paused=os.WIFSTOPPED(status))
                continue
            child = self._children.pop(pid, None)
            if child is not None:
                self._close_pipe(child)
                self._report(Exited(pid=pid, status=status, output=child.tail))

    def _paused(self, pid: int, *, is_paused: bool) -> None:
        if pid in self._children:
            self._children[pid].stopped_at = time.monotonic() if is_paused else None
        self._report(Paused(pid=pid, is_paused=is_paused))

    def _close_pipe(self, child: _Child) -> None:
        if self._pipes.pop(child.pipe, None) is not None:
            child.drain()
            self._poll.unregister(child.pipe)
            os.close(child.pipe)

    def _report(self, event: Any, descriptor: int | None = None) -> None:
        descriptors = [] if descriptor is None else [descriptor]
        try:
            socket.send_fds(self._control, [encode(event)], descriptors)
        except OSError:
            self._lose_parent()

    def _lose_parent(self) -> None:
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._poll.unregister(self._control)
            if self._parent >= 0:
                self._poll.unregister(self._parent)


def _pass_on(data: bytes) -> None:
    """Write to the server's own stderr; nobody may be there to read it."""
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        return


def main() -> None:
    """What the fork server's process runs; its control socket is standard input."""
    with socket.socket(fileno=os.dup(0)) as control:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        ForkServer(control).run()
