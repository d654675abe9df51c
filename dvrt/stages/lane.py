"""A lane: one task that does pieces of work for one receiver, one after the other.

Whatever goes wrong with the receiver stays on its lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from dvrt.errors import DvrtError

T = TypeVar("T")


class Lane(Generic[T]):
    """Hands items to ``work`` in their order; a DvrtError of ``work`` ends that item alone.

    The lane is not bounded: whoever fills it sees to it that items are small, or counts them. Any
    other error ends the lane and goes to ``on_failure``.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[T], Awaitable[None]],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._work = work
        self._on_failure = on_failure
        self._items: deque[T] = deque()
        self._is_filled = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(self._run(), name=f"lane to {name}")

    def __len__(self) -> int:
        """Items that wait, without the one in hand."""
        return len(self._items)

    def put(self, item: T) -> None:
        self._items.append(item)
        self._is_filled.set()

    def close(self) -> list[T]:
        """End now; what nobody has begun is returned."""
        self.task.cancel()
        left = list(self._items)
        self._items.clear()
        return left

    async def _run(self) -> None:
        while True:
            while self._items:
                try:
                    await self._work(self._items.popleft())
                except DvrtError:  # the next item may get through
                    continue
                except Exception as error:
                    self._on_failure(error)
                    return
            self._is_filled.clear()
            await self._is_filled.wait()
