"""Who wants to know when an actor ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dvrt.actors.ref import ActorRef

WatchCallback = Callable[[ActorRef, str], None]


class Watch:
    """One interest in the end of one actor; told at most once."""

    def __init__(self, watches: Watches, ref: ActorRef, callback: WatchCallback) -> None:
        self._watches = watches
        self._callback: WatchCallback | None = callback
        self.ref = ref

    @property
    def is_open(self) -> bool:
        """Whether the callback may still be called."""
        return self._callback is not None

    def cancel(self) -> None:
        """Do not call any more; harmless at any time."""
        self._callback = None
        self._watches.forget(self)

    def call(self, reason: str) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(self.ref, reason)


class Watches:
    """The open watches of one node, on its own and on other nodes' actors."""

    def __init__(self) -> None:
        self._by_ref: dict[ActorRef, list[Watch]] = {}

    def __len__(self) -> int:
        return sum([len(watches) for watches in self._by_ref.values()])

    def add(self, ref: ActorRef, callback: WatchCallback) -> Watch:
        watch = Watch(self, ref, callback)
        self._by_ref.setdefault(ref, []).append(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        watches = self._by_ref.get(watch.ref, [])
        if watch in watches:
            watches.remove(watch)
            if not watches:
                del self._by_ref[watch.ref]

    def tell(self, ref: ActorRef, reason: str) -> None:
        """The actor has ended: call everybody who watches it, in the loop's next turn."""
        loop = asyncio.get_running_loop()
        for watch in self._by_ref.pop(ref, []):
            loop.call_soon(watch.call, reason)

    def tell_all_of(self, node_address: str, reason: str) -> None:
        """The node is gone, and every actor on it."""
        for ref in [ref for ref in self._by_ref if ref.node_address == node_address]:
            self.tell(ref, reason)

    def clear(self) -> None:
        """Call nobody any more."""
        self._by_ref.clear()
