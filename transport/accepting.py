"""The tasks of a listener's handlers: started, kept, and their failures reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any

from dvrt.errors import TransportError
from dvrt.transport.base import Channel, ChannelHandler

_log = logging.getLogger("dvrt.transport")


class Handlers:
    """Runs the handler of each accepted channel in a task of its own, in the context of whoever
    made this object: within one process, the caller's turn is the connecting side's.

    A handler that fails aborts its channel: with a TransportError it is logged, since the peer's
    end is daily life; anything else goes to the loop's exception handler.
    """

    def __init__(self, handler: ChannelHandler) -> None:
        self._handler = handler
        self._context = copy_context()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, channel: Channel) -> None:
        self._keep(self._run(channel), channel.peer, channel.abort)

    def start_opening(
        self, opening: Callable[[], Awaitable[Channel]], peer: str, undo: Callable[[], None]
    ) -> None:
        """For a channel that is ready only after some exchange with the peer."""
        self._keep(self._open(opening, peer), peer, undo)

    def _keep(self, work: Coroutine[Any, Any, None], peer: str, undo: Callable[[], None]) -> None:
        """``undo`` is for a task that is cancelled, perhaps before its first step."""
        task = asyncio.get_running_loop().create_task(
            work, name=f"channel {peer}", context=self._context.copy()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: undo() if done.cancelled() else None)

    async def _open(self, opening: Callable[[], Awaitable[Channel]], peer: str) -> None:
        try:
            channel = await opening()
        except (TransportError, OSError) as error:
            _log.info("%s was not let in: %s: %s", peer, type(error).__name__, error)
            return
        await self._run(channel)

    async def _run(self, channel: Channel) -> None:
        try:
            await self._handler(channel)
        except TransportError as error:
            channel.abort()
            _log.info("channel %s ended: %s: %s", channel.peer, type(error).__name__, error)
        except Exception as error:
            channel.abort()
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the handler of channel {channel.peer} failed", "exception": error}
            )
        except BaseException:
            channel.abort()
            raise
