"""A bounded pool of staging buffers: pinned once, leased many times, awaited with a deadline.

Buffers come from any allocator (a device's ``alloc_host``) and are kept for reuse by size class.
First come, first served: a large lease that waits is not overtaken by small ones.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from dvrt.buffers import Region
from dvrt.errors import OutOfMemory, StaleLease, TransferTimeout

MIN_CLASS_BYTES = 4 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingStatistics:
    """Bytes now; counts since the start. ``leased`` + ``quarantined`` + ``cached`` <= ``limit``."""

    limit_bytes: int
    leased_bytes: int
    quarantined_bytes: int
    cached_bytes: int
    waiting: int
    leases: int
    allocations: int
    waits: int


class Staging:
    """A leased buffer of at least the bytes asked for; ``region`` has exactly them.

    Released when its ``async with`` or ``with`` block ends, unless it was quarantined.
    """

    __slots__ = ("_buffer", "_is_over", "_pool", "region")

    def __init__(self, pool: StagingPool, buffer: Region, nbytes: int) -> None:
        self._pool = pool
        self._buffer = buffer
        self._is_over = False
        self.region = buffer.part(0, nbytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._is_over:
            self.release()

    def release(self) -> None:
        """Give it back; nobody touches it any more. Raises StaleLease the second time."""
        self._end()
        self._pool._give_back(self._buffer, was_quarantined=False)

    def quarantine(self) -> None:
        """End the lease while something may still touch the buffer; ``settle`` must follow."""
        self._end()
        self._pool._hold(self._buffer)

    def settle(self) -> None:
        """The quarantined buffer is quiet: it may be leased again."""
        self._pool._give_back(self._buffer, was_quarantined=True)

    def _end(self) -> None:
        if self._is_over:
            raise StaleLease("this staging buffer was given back before")
        self._is_over = True


class StagingPool:
    """At most ``limit_bytes`` of staging, leased, quarantined and cached together."""

    def __init__(
        self,
        allocate: Callable[[int], Region],
        free: Callable[[Region], None],
        *,
        limit_bytes: int,
        name: str = "staging",
    ) -> None:
        self._allocate, self._free = allocate, free
        self._limit = limit_bytes
        self._name = name
        self._cached: dict[int, list[Region]] = defaultdict(list)
        self._cached_bytes = self._leased_bytes = 0
        self._quarantined: dict[int, int] = {}
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._is_closed = False
        self._leases = self._allocations = self._waits = 0

    def __repr__(self) -> str:
        s = self.statistics()
        return f"<StagingPool {self._name} {s.leased_bytes} of {s.limit_bytes}, {s.waiting} wait>"

    async def lease(self, nbytes: int, *, deadline_s: float | None = None) -> Staging:
        """A buffer for ``nbytes``, as soon as there is room.

        Raises OutOfMemory for more than the limit, TransferTimeout at the deadline. Cancelling
        loses nothing.
        """
        size = size_class(nbytes)
        if size > self._limit:
            raise OutOfMemory(self._name, needed_bytes=size, free_bytes=self._limit)
        if self._is_closed:
            raise _closed(self._name)
        if self._waiting or not self._has_room(size):
            await self._wait(size, deadline_s)
        return Staging(self, self._take(size), nbytes)

    def lease_nowait(self, nbytes: int) -> Staging:
        """A buffer at once. Raises OutOfMemory where others wait or there is no room."""
        size = size_class(nbytes)
        if self._waiting or not self._has_room(size):
            raise OutOfMemory(self._name, needed_bytes=size, free_bytes=self._limit - self._used)
        return Staging(self, self._take(size), nbytes)

    @property
    def _used(self) -> int:
        return self._leased_bytes + sum(self._quarantined.values())

    def _has_room(self, size: int) -> bool:
        return self._used + size <= self._limit

    async def _wait(self, size: int, deadline_s: float | None) -> None:
        """Wait for the turn and the room; returns with ``size`` set aside for the caller."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, future)
        self._waiting.append(entry)
        self._waits += 1
        try:
            async with asyncio.timeout(deadline_s):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._leased_bytes -= size
            elif entry in self._waiting:
                self._waiting.remove(entry)
            self._wake()
            if isinstance(error, TimeoutError):
                raise TransferTimeout(f"{self!r}: no {size} bytes before the deadline") from None
            raise
        self._leased_bytes -= size

    def _wake(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][0]):
            size, future = self._waiting.popleft()
            if future.done():
                continue
            self._leased_bytes += size
            future.set_result(None)

    def _take(self, size: int) -> Region:
        self._leases += 1
        if cached := self._cached[size]:
            self._cached_bytes -= size
            buffer = cached.pop()
        else:
            self._evict(self._used + self._cached_bytes + size - self._limit)
            try:
                buffer = self._allocate(size)
            except BaseException:
                self._wake()  # what was set aside for this one is there for the next
                raise
            self._allocations += 1
        self._leased_bytes += size
        return buffer

    def _evict(self, excess: int) -> None:
        for size in sorted(self._cached, reverse=True):
            while excess > 0 and self._cached[size]:
                self._free(self._cached[size].pop())
                self._cached_bytes -= size
                excess -= size

    def _hold(self, buffer: Region) -> None:
        self._leased_bytes -= buffer.nbytes
        self._quarantined[buffer.address] = buffer.nbytes

    def _give_back(self, buffer: Region, *, was_quarantined: bool) -> None:
        if not was_quarantined:
            self._leased_bytes -= buffer.nbytes
        elif self._quarantined.pop(buffer.address, None) is None:
            raise StaleLease("this staging buffer is not in quarantine")
        if self._is_closed:
            self._free(buffer)
            return
        self._cached[buffer.nbytes].append(buffer)
        self._cached_bytes += buffer.nbytes
        self._wake()

    def close(self) -> None:
        """Free what is cached; what is out is freed when it comes back. Who waits gets an error."""
        self._is_closed = True
        self._evict(self._cached_bytes)
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(_closed(self._name))

    def statistics(self) -> StagingStatistics:
        return StagingStatistics(
            limit_bytes=self._limit,
            leased_bytes=self._leased_bytes,
            quarantined_bytes=sum(self._quarantined.values()),
            cached_bytes=self._cached_bytes,
            waiting=len(self._waiting),
            leases=self._leases,
            allocations=self._allocations,
            waits=self._waits,
        )


def _closed(name: str) -> StaleLease:
    return StaleLease(f"{name} was closed")


def size_class(nbytes: int) -> int:
    """Powers of two from MIN_CLASS_BYTES up to 1 MiB, then whole MiB."""
    if nbytes > 1 << 20:
        return -(-nbytes // (1 << 20)) << 20
    return max(MIN_CLASS_BYTES, 1 << max(nbytes - 1, 0).bit_length())
