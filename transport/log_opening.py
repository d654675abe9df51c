"""Opening a log: locked against all others, and cut to what can be gone on from.

A crash leaves anything behind the last flush, so the log goes on from the last record before the
first damage. But a bit that rots in an old record must not cost all that was flushed after it:
where a whole record lies behind the damage, what is cut off is put aside first.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
from pathlib import Path
from typing import NamedTuple

from dvrt.transport.records import next_whole, whole_until

_COPY_BYTES = 1 << 20
_log = logging.getLogger("dvrt.transport")


class OpenedLog(NamedTuple):
    """A locked log of ``end`` bytes, all of them durable; ``torn_bytes`` were cut off."""

    fd: int
    end: int
    torn_bytes: int


def open_log(path: Path) -> OpenedLog:
    """Open or create, lock, and cut off what is torn; the name itself is made durable.

    Blocks. Raises OSError, and then nothing is lost.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(fd).st_size
        end = whole_until(fd, size)
        aside = _put_aside(fd, end, size, path) if next_whole(fd, end, size) is not None else None
        try:
            os.ftruncate(fd, end)
        except BaseException:  # the next try makes a copy of its own
            if aside is not None:
                aside.unlink()
            raise
        os.fsync(fd)
        _sync_directory(path.parent)
        return OpenedLog(fd, end, size - end)
    except BaseException:
        os.close(fd)
        raise


def _put_aside(fd: int, start: int, end: int, path: Path) -> Path:
    """Make a durable copy of ``[start, end)`` beside the log, under a name that is free."""
    copy_fd, aside = _create_aside(path, start)
    try:
        _copy(fd, start, end, copy_fd)
        os.fsync(copy_fd)
        _sync_directory(path.parent)
    except BaseException:
        aside.unlink()
        raise
    finally:
        os.close(copy_fd)
    _log.warning(
        "%s: damaged at byte %d, but not torn: whole records follow. The log goes on from there; "
        "the %d bytes that were cut off are kept in %s",
        path,
        start,
        end - start,
        aside,
    )
    return aside


def _create_aside(path: Path, start: int) -> tuple[int, Path]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.cut-{start}" + (f"-{number}" if number > 1 else ""))
        try:
            return os.open(aside, flags, 0o600), aside
        except FileExistsError:
            continue
    raise AssertionError("some name is free")


def _copy(fd: int, start: int, end: int, copy_fd: int) -> None:
    while start < end:
        data = os.pread(fd, min(_COPY_BYTES, end - start), start)
        if not data:
            raise OSError("the log was made shorter by somebody else")
        start += os.write(copy_fd, data)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
