"""When a descriptor can be read or written, with errors and hang-ups, the same on every loop.

uvloop stops watching a descriptor that reports an error, such as a reset connection, and tells
nobody. Behind an epoll of its own the error is an ordinary event.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable


class Readiness:
    """Watches one descriptor for one callback, which tries what it wants to do."""

    def __init__(self, fd: int, on_ready: Callable[[], None]) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self.reads = self.writes = False
        self._loop.add_reader(self._epoll.fileno(), on_ready)

    def watch(self, *, reads: bool | None = None, writes: bool | None = None) -> None:
        """Change what is watched for; None leaves it as it is. No interest also mutes errors."""
        reads = self.reads if reads is None else reads
        writes = self.writes if writes is None else writes
        if (reads, writes) == (self.reads, self.writes) or self._epoll.closed:
            return
        mask = select.EPOLLIN * reads | select.EPOLLOUT * writes
        if not mask:
            self._epoll.unregister(self._fd)
        elif self.reads or self.writes:
            self._epoll.modify(self._fd, mask)
        else:
            self._epoll.register(self._fd, mask)
        self.reads, self.writes = reads, writes

    def close(self) -> None:
        """Watch no more; before the descriptor is closed. Twice is harmless."""
        if not self._epoll.closed:
            self.reads = self.writes = False
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
