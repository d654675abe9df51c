"""``file:///path``: a channel to a disk. What is sent is appended, what is received was sent once.

``flush`` makes all that was sent durable. A crash may tear the last records; whoever opens the
file next goes on after the last whole one before the damage. Disk work runs in threads, so a
cancelled transfer's memory is in use until ``quiet`` returns; until then its owner is kept alive.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dvrt.buffers import Region
from dvrt.errors import ConfigError, ConnectFailed, PeerLost
from dvrt.transport.base import ChannelHandler, Listener, Transport
from dvrt.transport.framing import check_limits
from dvrt.transport.guarded import GuardedChannel
from dvrt.transport.log_opening import OpenedLog, open_log
from dvrt.transport.packing import views_of
from dvrt.transport.reasons import reason
from dvrt.transport.records import Record, check_record, pack_record, read_record
from dvrt.transport.registry import split_address
from dvrt.transport.vector import Vector
from dvrt.transport.waiting import Waiter, until

_VECTOR_COUNT = 512
T = TypeVar("T")


class FileChannel(GuardedChannel):
    """A log with one reader and one writer in this process, locked against all others.

    ``receive`` starts at the first record and waits at the end for what is sent next; ``has_more``
    tells whether it would wait. ``torn_bytes`` were cut off when the file was opened; if there was
    a whole record among them, ``FileTransport.connect`` says where they are. ``aclose`` makes all
    durable, and raises PeerLost where it cannot.
    """

    def __init__(self, fd: int, peer: str, end: int, torn_bytes: int) -> None:
        super().__init__(peer)
        self.torn_bytes = torn_bytes
        self._fd = fd
        self._end = self._durable_end = end
        self._position = 0
        self._record: Record | None = None
        self._works: set[asyncio.Future[Any]] = set()
        self._is_dropped = False

    @property
    def has_more(self) -> bool:
        return self._position < self._end

    @property
    def written_bytes(self) -> int:
        """Where the next record will begin."""
        return self._end

    @property
    def durable_bytes(self) -> int:
        """How much of the file survives the loss of power."""
        return self._durable_end

    async def flush(self, *, deadline_s: float | None = None) -> None:
        """Return when all that was sent before this call is on the disk."""
        self._ensure_usable()
        end = self._end
        await self._work(Waiter("a flush"), until(deadline_s), self._flush_now)
        self._durable_end = max(self._durable_end, end)

    def _flush_now(self) -> None:
        os.fdatasync(self._fd)

    async def _send(
        self, header: bytes, regions: tuple[Region, ...], sizes: list[int], until: float | None
    ) -> None:
        self._end = await self._work(self._send_waiter, until, self._append, header, regions)
        self._receive_waiter.wake()

    def _append(self, header: bytes, regions: tuple[Region, ...]) -> int:
        """Where the record ends. The thread has the regions, as a view does not keep their owner
        alive, and whoever called may have let go."""
        views = views_of(regions)
        data = Vector([memoryview(pack_record(header, views)), *views])
        end = self._end
        while data.nbytes:
            count = os.pwritev(self._fd, data.next(_VECTOR_COUNT), end)
            data.advance(count)
            end += count
        return end

    async def _next(self, until: float | None) -> tuple[bytes, tuple[int, ...]]:
        while not self.has_more:
            await self._receive_waiter.wait(until)
            self._ensure_usable()
        record = await self._work(self._receive_waiter, until, self._look)
        check_limits(
            self.limits,
            header_bytes=len(record.header),
            region_count=len(record.sizes),
            region_bytes=sum(record.sizes),
        )
        if record.sizes:
            self._record = record
        else:
            self._position = record.end
        return record.header, record.sizes

    def _look(self) -> Record:
        record = read_record(self._fd, self._position, self._end)
        assert record is not None, "has_more said so"
        check_record(self._fd, self._position, record)
        return record

    async def _fill(self, regions: tuple[Region, ...], until: float | None) -> None:
        assert self._record is not None, "regions come after their header"
        await self._work(self._receive_waiter, until, self._read, regions, self._record.regions_at)
        self._position = self._record.end

    def _read(self, regions: tuple[Region, ...], position: int) -> None:
        targets = Vector(views_of(regions))
        while targets.nbytes:
            count = os.preadv(self._fd, targets.next(_VECTOR_COUNT), position)
            if not count:
                raise PeerLost(f"{self.peer} was made shorter by somebody else")
            targets.advance(count)
            position += count

    async def _work(
        self, waiter: Waiter, until: float | None, work: Callable[..., T], *args: object
    ) -> T:
        """Run ``work`` in a thread; it goes on after this call was cancelled or came too late."""
        future = self._start(waiter, work, *args)
        while not future.done():
            await waiter.wait(until)
            self._ensure_usable()
        try:
            return future.result()
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> PeerLost:
        return PeerLost(f"{self.peer}: {reason(error)}")

    def _start(self, waiter: Waiter, work: Callable[..., T], *args: object) -> asyncio.Future[T]:
        future = asyncio.get_running_loop().run_in_executor(None, work, *args)
        self._works.add(future)
        future.add_done_callback(lambda done: self._worked(done, waiter, work))
        return future

    def _worked(self, future: asyncio.Future[T], waiter: Waiter, work: Callable[..., T]) -> None:
        """A flush that fails breaks the channel, though nobody may wait for it any more: what the
        kernel could not write it may have forgotten, and the next flush would not be told."""
        self._works.discard(future)
        error = None if future.cancelled() else future.exception()
        if isinstance(error, OSError) and work == self._flush_now:
            self._break(self._lost(error))
        waiter.wake()
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._is_dropped and not self._works and self._fd >= 0:
            # Closing leaves the lock to a child that was forked and has not begun its program.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1

    async def quiet(self) -> None:
        while self._works:
            await asyncio.wait(self._works)

    async def _finish(self) -> None:
        await self.quiet()
        flushing = self._start(Waiter("closing"), self._flush_now)
        await asyncio.wait([flushing])
        error = flushing.exception()
        if isinstance(error, OSError):
            raise self._lost(error)

    def _drop(self) -> None:
        self._is_dropped = True
        self._close_when_idle()


def _close_unwanted(opening: asyncio.Future[OpenedLog]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result().fd)


class FileTransport(Transport):
    """Opens logs; nobody can be listened for on a disk."""

    scheme: ClassVar[str] = "file"

    async def connect(self, address: str, *, deadline_s: float) -> FileChannel:
        """Open or create a log, which goes on from its last record before any damage.

        A torn end is cut off. Where a whole record lies behind the damage, as when a bit of an old
        record has rotted, what is cut off was perhaps durable: it is kept in a file beside the log,
        ``<name>.cut-<offset>`` (``-2`` and so on behind it where that is taken), which is durable
        before the log is cut, and a warning is logged. Raises ConnectFailed, also where there is
        no room for that file; ConfigError for an address without a path.
        """
        _, name = split_address(address)
        if not name:
            raise ConfigError(f"address {address!r}: expected file:///path/of/the/log")
        opening = asyncio.get_running_loop().run_in_executor(None, open_log, Path(name))
        try:
            await asyncio.wait_for(asyncio.shield(opening), deadline_s)
        except TimeoutError:
            opening.add_done_callback(_close_unwanted)
            raise ConnectFailed(f"{address} was not open within {deadline_s:g} s") from None
        except OSError as error:
            raise ConnectFailed(f"{address}: {reason(error)}") from error
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise
        return FileChannel(opening.result().fd, address, *opening.result()[1:])

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        raise ConnectFailed(f"{address}: a file is connected to, not listened at")
