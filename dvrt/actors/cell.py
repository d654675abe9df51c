"""A cell: one spawned actor with its mailbox and its task, from start to end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dvrt.actors.actor import Actor, Context
from dvrt.actors.bounded import BoundedQueue
from dvrt.actors.envelope import Acknowledged
from dvrt.actors.limits import NodeLimits, QueueStatistics
from dvrt.errors import DvrtError
from dvrt.wire import Message

if TYPE_CHECKING:
    from dvrt.actors.link import Link

STOPPED, FAILED = "stopped", "failed"
"""How the reasons begin that watchers get; what follows says why."""
_log = logging.getLogger("dvrt.actors")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the answer to an ask goes; ``link`` is None for an ask of the actor's own node."""

    ask: int
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as its actor gets it, and what it costs while it waits."""

    message: Message
    context: Context
    origin: Origin | None = None
    nbytes: int = 0


class Cell:
    """Runs one actor. ``reply`` sends an answer; ``ended`` is called once, with the reason and
    the letters that nobody handled.

    Whatever ends it (its own wish, an error, ``end`` from outside), ``on_stop`` is called.
    """

    def __init__(
        self,
        actor: Actor,
        *,
        limits: NodeLimits,
        reply: Callable[[Origin, object], Awaitable[None]],
        ended: Callable[[Cell, str, list[Letter]], None],
    ) -> None:
        self.actor = actor
        self.name = actor.me.name
        self.remote_watchers: dict[Link, None] = {}
        self._limits = limits
        self._reply, self._ended = reply, ended
        self._mailbox: BoundedQueue[Letter] = BoundedQueue(
            max_items=limits.mailbox_messages, max_bytes=limits.mailbox_bytes
        )
        self._why: str | BaseException | None = None
        self._handled: Letter | None = None
        self._left: list[Letter] = []
        self._cut_short: asyncio.TimerHandle | None = None
        self._is_aborted = False
        self._loop = asyncio.get_running_loop()
        self.task = self._loop.create_task(self._run(), name=f"actor {self.name}")

    def offer(self, letter: Letter) -> asyncio.Future[bool] | None:
        """As BoundedQueue.offer; False for an actor that ends."""
        return self._mailbox.offer(letter)

    def deliver(self, letter: Letter) -> asyncio.Future[bool] | None:
        """As ``offer``; a letter that the actor can take at once skips the mailbox."""
        if letter.origin is None and self._mailbox.is_awaited and self._take_at_once(letter):
            return None
        return self._mailbox.offer(letter)

    def _take_at_once(self, letter: Letter) -> bool:
        try:
            return self.actor.take_at_once(letter.message, letter.context)
        except Exception as error:
            self.end(error)
            return True

    def offer_nowait(self, letter: Letter) -> bool:
        """Whether there was room for the letter."""
        return self._mailbox.put_nowait(letter)

    @property
    def is_ending(self) -> bool:
        return self._why is not None

    def end(self, why: str | BaseException) -> None:
        """End after the letter in hand, which has ``stop_s`` until it is cancelled."""
        if self._why is None:
            self._why = why
            self._left += self._mailbox.close()
            self._cut_short = self._loop.call_later(self._limits.stop_s, self.task.cancel)

    def abort(self) -> None:
        """End now, as if the process were killed: no ``on_stop``, nobody is told."""
        self._is_aborted = True
        self._mailbox.close()
        self.task.cancel()
        self.actor.on_abort()

    def statistics(self) -> QueueStatistics:
        return self._mailbox.statistics()

    async def _run(self) -> None:
        try:
            await self.actor.on_start()
            while (letter := await self._mailbox.get()) is not None:
                await self._handle(letter)
        except asyncio.CancelledError as error:
            self._cancelled(error)
        except Exception as error:
            self.end(error)
        if self._cut_short is not None:
            self._cut_short.cancel()
        if self._is_aborted:
            return
        reason = self._reason()
        await self._stop(reason)
        if not self._is_aborted:
            self._ended(self, reason, self._left)

    async def _handle(self, letter: Letter) -> None:
        self._handled = letter
        answer: object
        try:
            answer = await self.actor.receive(letter.message, letter.context)
        except DvrtError as error:
            if letter.origin is None:
                raise
            answer = error
        if letter.origin is not None:
            await self._reply(letter.origin, Acknowledged() if answer is None else answer)
        self._handled = None

    def _cancelled(self, error: asyncio.CancelledError) -> None:
        """Cut short, aborted, or cancelled from inside, by what it awaited."""
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        if self._why is None:
            self.end(error)
        elif not self._is_aborted:
            _log.warning("actor %s was cut short: its last message took too long", self.name)

    def _reason(self) -> str:
        if self._handled is not None and self._handled.origin is not None:
            self._left.insert(0, self._handled)
        if isinstance(self._why, BaseException):
            trace = None if isinstance(self._why, DvrtError) else self._why
            _log.error("actor %s failed: %s", self.name, self._why, exc_info=trace)
            return f"{FAILED}: {type(self._why).__name__}: {self._why}"
        return f"{STOPPED}: {self._why}"

    async def _stop(self, reason: str) -> None:
        try:
            async with asyncio.timeout(self._limits.stop_s):
                await self.actor.on_stop(reason)
        except asyncio.CancelledError:
            if not self._is_aborted:
                _log.error("actor %s: on_stop was cancelled", self.name)
        except Exception:
            _log.exception("actor %s: on_stop failed", self.name)
