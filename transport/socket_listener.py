"""Accepting connections on a listening socket, patiently when the process is out of files."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from dvrt.transport.base import Listener

BACKLOG = 512
_PAUSE_S = 0.1
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = logging.getLogger("dvrt.transport")


class SocketListener(Listener):
    """Owns ``sock``, bound and listening; hands each accepted socket to ``on_accept``.

    ``on_accept`` owns the socket then; it may raise OSError for one that is dead already, which
    is closed.
    """

    def __init__(
        self, sock: socket.socket, address: str, on_accept: Callable[[socket.socket], None]
    ) -> None:
        self.address = address
        self._sock = sock
        self._on_accept = on_accept
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                self._rest(error)
            return
        sock.setblocking(False)
        try:
            self._on_accept(sock)
        except OSError:
            sock.close()

    def _rest(self, error: OSError) -> None:
        """Without this the loop would spin on a connection that it cannot accept."""
        _log.warning("%s cannot accept: %s; trying again soon", self.address, error)
        self._loop.remove_reader(self._sock.fileno())
        self._pause = self._loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    async def aclose(self) -> None:
        if self._sock.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
