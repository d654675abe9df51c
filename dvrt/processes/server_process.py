"""The fork server's process, as the nursery sees it: requests go in, events come out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from dvrt.errors import StageFailed, WireError
from dvrt.processes.fork_server import MAX_REQUEST_BYTES, End
from dvrt.wire import decode, encode

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from dvrt.processes.fork_server import main; main()"
)
_STDERR = 2

Receive = Callable[[Any, int | None], None]


class ServerProcess:
    """Starts the fork server at once, in a session of its own, with this process's import path.

    ``receive(event, descriptor)`` gets what it reports, ``lost()`` is called once, when it is
    gone or ``close`` was called.
    """

    def __init__(
        self, *, env: Mapping[str, str], receive: Receive, lost: Callable[[], None]
    ) -> None:
        self._receive, self._lost = receive, lost
        self._loop = asyncio.get_running_loop()
        self._reaped: asyncio.Future[None] = self._loop.create_future()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                    stdin=theirs.fileno(),
                    stdout=_STDERR,
                    env={**os.environ, **env},
                    start_new_session=True,
                )
        except OSError as error:
            self._control.close()
            text = f"the fork server cannot be started: {error}"
            raise StageFailed("fork server", str(error), text=text) from error
        self._descriptor = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._descriptor, self._reap)
        self._loop.add_reader(self._control, self._on_readable)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def is_reaped(self) -> bool:
        """Whether nothing of it is left."""
        return self._reaped.done()

    def send(self, request: object) -> None:
        """Raises StageFailed when the server is gone or does not keep up."""
        data = encode(request)
        if len(data) > MAX_REQUEST_BYTES:
            reason = f"a request of {len(data)} bytes; limit {MAX_REQUEST_BYTES}"
            raise StageFailed("fork server", reason, text=f"to the fork server: {reason}")
        try:
            self._control.send(data)
        except OSError as error:
            text = f"the fork server takes no request: {error}"
            raise StageFailed("fork server", str(error), text=text) from error

    def end(self) -> None:
        """Have it kill the workers that are left, and end. Harmless when it is gone."""
        with contextlib.suppress(StageFailed):
            self.send(End())
        self.close()

    def close(self) -> None:
        """Let go of it: it ends when the workers have. Harmless when it is gone."""
        if self._control.fileno() < 0:
            return
        self._loop.remove_reader(self._control)
        self._control.close()
        self._lost()

    async def wait_end(self, limit_s: float) -> None:
        """Return when it has ended; kill it after ``limit_s``."""
        await asyncio.wait({self._reaped}, timeout=limit_s)
        if not self._reaped.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            await asyncio.wait({self._reaped}, timeout=limit_s)

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._process.wait()
        self._reaped.set_result(None)
        self._drain()
        self.close()

    def _on_readable(self) -> None:
        if not self._drain():
            self.close()

    def _drain(self) -> bool:
        """Take all events that are here. False when there will be no more."""
        while self._control.fileno() >= 0:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, 1)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            try:
                self._receive(decode(data), descriptors[0] if descriptors else None)
            except WireError:
                for descriptor in descriptors:
                    os.close(descriptor)
        return False
