"""A bounded first-in-first-out queue with one reader: the mailboxes of actors, the outboxes of
links. Whoever finds no room waits, in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar

from dvrt.actors.limits import QueueStatistics


class Weighed(Protocol):
    """An item that says what it costs to hold."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Weighed)


class BoundedQueue(Generic[T]):
    """Holds at most ``max_items`` of ``max_bytes`` together; an empty one takes any single item.

    Belongs to the running loop.
    """

    def __init__(self, *, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[T] = deque()
        self._nbytes = self._highest = self._taken = 0
        self._reader: asyncio.Future[None] | None = None
        self._waiting: deque[tuple[T, asyncio.Future[bool]]] = deque()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_awaited(self) -> bool:
        """The reader waits, and there is nothing for it."""
        return self._reader is not None and not self._reader.done()

    def offer(self, item: T) -> asyncio.Future[bool] | None:
        """None when the item was taken at once.

        Otherwise a future: True once there was room for it, False when the queue was closed
        first. Cancelling the future withdraws the item.
        """
        if not self._is_closed and not self._waiting and self._has_room(item):
            self._take(item)
            return None
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            future.set_result(False)
        else:
            self._waiting.append((item, future))
        return future

    def put_nowait(self, item: T, *, beyond_limit: bool = False) -> bool:
        """Take the item if there is room (or in any case ``beyond_limit``) and say whether."""
        if self._is_closed or not (beyond_limit or (not self._waiting and self._has_room(item))):
            return False
        self._take(item)
        return True

    def get_nowait(self) -> T | None:
        """The next item, or None when there is none."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._nbytes -= item.nbytes
        if self._waiting:
            self._admit()
        return item

    async def get(self) -> T | None:
        """The next item; None once the queue is closed. Cancelling it loses nothing."""
        while not self._items:
            if self._is_closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self.get_nowait()

    def close(self) -> list[T]:
        """Take no more, wake everybody, and return the items that nobody will read."""
        self._is_closed = True
        left = list(self._items)
        self._items.clear()
        self._nbytes = 0
        for _, future in self._waiting:
            if not future.done():
                future.set_result(False)
        self._waiting.clear()
        self._wake_reader()
        return left

    def statistics(self) -> QueueStatistics:
        return QueueStatistics(
            items=len(self._items),
            nbytes=self._nbytes,
            highest=self._highest,
            taken=self._taken,
            waiting=len(self._waiting),
        )

    def _has_room(self, item: T) -> bool:
        held = len(self._items)
        return not held or (
            held < self._max_items and self._nbytes + item.nbytes <= self._max_bytes
        )

    def _take(self, item: T) -> None:
        self._items.append(item)
        self._nbytes += item.nbytes
        self._taken += 1
        self._highest = max(self._highest, len(self._items))
        self._wake_reader()

    def _admit(self) -> None:
        while self._waiting:
            item, future = self._waiting[0]
            if not future.done():
                if not self._has_room(item):
                    return
                self._take(item)
                future.set_result(True)
            self._waiting.popleft()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
