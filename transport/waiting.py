"""One waiter of one direction of a channel: woken, timed out or cancelled, never lost."""

from __future__ import annotations

import asyncio

from dvrt.errors import TransferTimeout


def until(deadline_s: float | None) -> float | None:
    """The loop's time at which a deadline that starts now has passed."""
    if deadline_s is None:
        return None
    return asyncio.get_running_loop().time() + deadline_s


class Waiter:
    """What a task sleeps on until the channel's callbacks have something for it.

    Waking carries no value: the woken task looks at the channel's state, so a task that is
    cancelled in the moment it is woken loses nothing.
    """

    __slots__ = ("_future", "_verb")

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, expires_at: float | None) -> None:
        """Sleep until woken. Raises TransferTimeout at ``expires_at`` of the loop's clock."""
        loop = asyncio.get_running_loop()
        future = self._future = loop.create_future()
        timer = None
        if expires_at is not None:
            timer = loop.call_at(expires_at, self._expire, future)
        try:
            await future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def _expire(self, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_exception(TransferTimeout(f"{self._verb} was not over by its deadline"))
