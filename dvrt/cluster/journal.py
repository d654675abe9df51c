"""The journal of a serving controller: written behind the pipeline and ahead of the clients.

A step's tokens leave for their clients only when they are in the file, and the next step does not
wait for that. So whatever a client has seen before the controller was killed, the next one knows,
and cannot contradict; tokens that were drawn and not written were seen by nobody and are drawn
again. This holds in both modes: in fast mode a token that is drawn again may be another one, which
nobody can notice. All events of one turn are one transaction, and the turns that come while one is
being written are the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dvrt.cluster.journal_store import Asked, Entry, JournalStore, Story

KEEP_S = 3600.0
KEEP_REQUESTS = 10_000
"""Answers that are complete are kept for so long, and so many of them."""
PRUNE_EVERY = 256
"""How many requests end between two prunings."""

_log = logging.getLogger("dvrt.cluster")
Then = Callable[[], None]


@dataclass(slots=True)
class JournalStatistics:
    """``waiting`` entries are not in the file yet; ``slowest_s`` is the longest transaction."""

    entries: int = 0
    transactions: int = 0
    waiting: int = 0
    busy_s: float = 0.0
    slowest_s: float = 0.0


class Journal:
    """A JournalStore on a thread of its own. Belongs to the loop that ``open`` ran on.

    When the file cannot be written, ``on_failure(reason)`` is called once, nothing is written any
    more, and everything else goes on.
    """

    def __init__(
        self, store: JournalStore, thread: ThreadPoolExecutor, remains: tuple[Story, ...]
    ) -> None:
        self.remains = remains
        self.first_number = store.first_number
        self.generation = store.generation
        self.secret = store.secret
        self.on_failure: Callable[[str], None] = _ignore
        self.statistics = JournalStatistics()
        self._store, self._thread = store, thread
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Entry, Then]] = []
        self._writer: asyncio.Task[None] | None = None
        self._failure: str | None = None
        self._n_ended = 0

    @classmethod
    async def open(cls, path: Path, *, model: str) -> Journal:
        """Read what an earlier life left. Raises ConfigError as JournalStore does."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        loop = asyncio.get_running_loop()

        def begin() -> tuple[JournalStore, tuple[Story, ...]]:
            store = JournalStore(path, model=model)
            store.prune(before=time.time() - KEEP_S, keep=KEEP_REQUESTS)
            return store, tuple(store.unended())

        try:
            store, remains = await loop.run_in_executor(thread, begin)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(store, thread, remains)

    @property
    def is_off(self) -> bool:
        return self._failure is not None

    def taken(self, asked: Asked) -> None:
        """A request is being served from now on."""
        self.write(Entry(asked=asked))

    def write(self, entry: Entry, then: Then | None = None) -> None:
        """Have an entry written, after all before it, and ``then`` called in the loop."""
        self._waiting.append((entry, then or _nothing))
        self.statistics.waiting += 1
        self._n_ended += len(entry.ended)
        if self._writer is None:
            self._writer = self._loop.create_task(self._write_all(), name="journal")

    async def story(self, request_id: str) -> Story | None:
        """A request that the file has; None for others, and when it cannot be read any more."""
        if self.is_off:
            return None
        return await self._loop.run_in_executor(self._thread, self._store.story, request_id)

    async def remember(self, name: str, value: str | int | bytes) -> None:
        await self._loop.run_in_executor(self._thread, self._store.remember, name, value)

    async def recall(self, name: str) -> str | int | bytes | None:
        return await self._loop.run_in_executor(self._thread, self._store.fact, name)

    async def aclose(self) -> None:
        """Write what waits, and close the file."""
        while self._writer is not None:
            await asyncio.wait([self._writer])
        await self._loop.run_in_executor(self._thread, self._store.close)
        self._thread.shutdown(wait=False)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._write([entry for entry, _ in batch])
                self.statistics.waiting -= len(batch)
                for _, then in batch:
                    then()
        finally:
            self._writer = None

    async def _write(self, entries: list[Entry]) -> None:
        if self.is_off:
            return
        prunes = self._n_ended >= PRUNE_EVERY
        self._n_ended = 0 if prunes else self._n_ended
        began = time.perf_counter()
        try:
            await self._loop.run_in_executor(self._thread, self._commit, entries, prunes)
        except Exception as error:
            self._fail(str(error))
        took_s = time.perf_counter() - began
        counted = self.statistics
        counted.entries += len(entries)
        counted.transactions += 1
        counted.busy_s += took_s
        counted.slowest_s = max(counted.slowest_s, took_s)

    def _commit(self, entries: list[Entry], prunes: bool) -> None:
        self._store.write(entries)
        if prunes:
            self._store.prune(before=time.time() - KEEP_S, keep=KEEP_REQUESTS)

    def _fail(self, reason: str) -> None:
        self._failure = reason
        _log.error("%s; serving goes on without a journal", reason)
        self.on_failure(reason)


def _nothing() -> None:
    """For entries that nobody waits for."""


def _ignore(reason: str) -> None:
    """Until somebody wants to hear of it."""
