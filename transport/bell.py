"""A wake-up from the peer that says nothing: room may have come, or the peer may be gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable

RING = (1).to_bytes(8, "little")


class Bell:
    """This side's eventfd, which the peer rings, watched together with the connection's end.

    Owns ``fd`` and the peer's bell, not the socket.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fd = self._peer_fd = -1
        self._loop = asyncio.get_running_loop()
        self._is_heard = False
        try:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._epoll.register(self.fd, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def join(self, peer_fd: int, sock_fd: int) -> None:
        """Know the peer's bell, which is owned from now on, and the socket that ends with it."""
        self._peer_fd = peer_fd
        self._epoll.register(sock_fd, select.EPOLLRDHUP)

    def ring_peer(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._peer_fd, RING)

    def listen(self, on_ring: Callable[[], None]) -> None:
        """Call back at each ring, one that was missed included, and while the peer is gone."""
        if not self._is_heard and not self._epoll.closed:
            self._is_heard = True
            self._loop.add_reader(self._epoll.fileno(), self._rang, on_ring)

    def mute(self) -> None:
        if self._is_heard:
            self._is_heard = False
            self._loop.remove_reader(self._epoll.fileno())

    def _rang(self, on_ring: Callable[[], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)
        on_ring()

    def has_ended(self) -> bool:
        """Whether the other end of the connection is gone."""
        return any(fd != self.fd for fd, _ in self._epoll.poll(0))

    def close(self) -> None:
        if self._epoll.closed:
            return
        self.mute()
        self._epoll.close()
        for fd in (self.fd, self._peer_fd):
            if fd >= 0:
                os.close(fd)
