"""Another process's UCX worker: the one endpoint to it, and the end of either."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable

from dvrt.errors import PeerLost
from dvrt.transport.ucx_setup import SetUp
from dvrt.transport.ucx_worker import UcxWorker


class UcxPeer:
    """Shared by all links to that worker, and kept as long as it can be reached.

    Who is to hear that it cannot is in ``on_lost``. On this host the kernel tells of the process's
    end at once; elsewhere UCX does.
    """

    def __init__(self, worker: UcxWorker, theirs: SetUp, *, is_near: bool) -> None:
        self._worker, self._address = weakref.ref(worker), theirs.address
        self._loop = asyncio.get_running_loop()
        self.on_lost: set[Callable[[], None]] = set()
        self._pid_fd = -1
        if is_near and theirs.pid != os.getpid():
            self._pid_fd = os.pidfd_open(theirs.pid)
            self._loop.add_reader(self._pid_fd, self.lose)
        try:
            self.endpoint = worker.open(theirs.address, self.lose)
        except BaseException:
            self._unwatch()
            raise
        worker.peers[theirs.address] = self

    def lose(self) -> None:
        """It cannot be reached any more: tell those who use it."""
        self._unwatch()
        worker = self._worker()
        if worker is not None:
            worker.peers.pop(self._address, None)
            worker.close_lost(self.endpoint)
        callbacks, self.on_lost = self.on_lost, set()
        for callback in callbacks:
            callback()

    def _unwatch(self) -> None:
        if self._pid_fd >= 0:
            self._loop.remove_reader(self._pid_fd)
            os.close(self._pid_fd)
            self._pid_fd = -1

    def __del__(self) -> None:
        if self._pid_fd >= 0:
            os.close(self._pid_fd)


def peer_at(worker: UcxWorker, *, ours: SetUp, theirs: SetUp) -> UcxPeer:
    """The peer of that address, made when it is first asked for. Raises PeerLost."""
    peer: UcxPeer | None = worker.peers.get(theirs.address)
    if peer is not None:
        return peer
    try:
        return UcxPeer(worker, theirs, is_near=ours.host == theirs.host)
    except Exception as error:  # ucxx raises classes of its own making
        raise PeerLost(f"UCX cannot reach the peer: {error}") from error
