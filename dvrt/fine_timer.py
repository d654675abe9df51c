"""A timer that fires to some tens of microseconds on any real loop.

Event loops round their timers up to whole milliseconds; the kernel's timers are as fine as its
clock, and wake a loop like any descriptor.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

_MONOTONIC, _ABSOLUTE = 1, 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_NANO = 1_000_000_000


class _Times(ctypes.Structure):
    """``struct itimerspec``: an interval, then when it fires, in seconds and nanoseconds."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


class FineTimer:
    """Calls ``callback`` on the running loop once after each ``set``. Linux only (timerfd)."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._libc = ctypes.PyDLL(None, use_errno=True)  # it never blocks: keep the GIL
        self._fd = self._libc.timerfd_create(_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise _last_error("timerfd_create")
        self._loop.add_reader(self._fd, self._fire)

    def set(self, at: float) -> None:
        """Fire at ``at`` of ``time.monotonic``, and not at what was set before; a time that has
        passed is now."""
        times = _Times(0, 0, *divmod(max(1, int(at * _NANO)), _NANO))
        if self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(times), None):
            raise _last_error("timerfd_settime")

    def close(self) -> None:
        """Fire no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fire(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._callback()


def _last_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
