"""The calls that are being answered: each ends when its client hangs up or the server closes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from dvrt.errors import Unavailable


class Calls:
    """Runs each call's work in a task of its own, as long as anybody wants it."""

    def __init__(self) -> None:
        self._working: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def __len__(self) -> int:
        return len(self._working)

    async def run(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Wait for ``work``; the body must have been received.

        Raises what it raises, ClientDisconnect when the client hangs up first, and Unavailable when
        ``close`` is called first. However this ends, cancellation included, ``work`` has ended.
        """
        if self._is_closing:
            work.close()
            raise Unavailable("the server is shutting down")
        working = asyncio.create_task(work)
        watching = asyncio.create_task(_hang_up(receive))
        self._working.add(working)
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)
            self._working.discard(working)
        if not working.cancelled():
            working.result()
        elif self._is_closing:
            raise Unavailable("the server is shutting down")
        else:
            raise ClientDisconnect

    def close(self) -> None:
        """End all calls, and refuse later ones, with Unavailable."""
        self._is_closing = True
        for task in self._working:
            task.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
