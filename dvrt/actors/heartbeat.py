"""Heartbeats between this node and one peer: sends beats, notices silence, judges nothing.

Runs on the loop's timers. The peer's node answers beats by itself, and any other message counts
as well; computing belongs on other threads.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from dvrt.actors.node import Node

LATE_TICKS = 2.0
"""A tick that comes this many intervals after the last one says nothing about the peer: this
side slept, and what the peer sent meanwhile is read first."""


class Heartbeat:
    """Beats every ``interval_s``; calls ``on_silence(silence_s)`` when ``limit_s`` were silent.

    Once per silence: heard again, the peer may fall silent again. Starts at once; ``close`` ends
    it. Makes no link; while there is none, silence grows. When ``mute_after_s`` were silent it
    beats no more until the peer is heard: a peer that goes by what it hears of this side then
    learns that nothing gets through to it.
    """

    def __init__(
        self,
        node: Node,
        node_address: str,
        *,
        interval_s: float,
        limit_s: float,
        on_silence: Callable[[float], None],
        mute_after_s: float = math.inf,
    ) -> None:
        self._node, self._address = node, node_address
        self._interval_s, self._limit_s = interval_s, limit_s
        self._on_silence, self._mute_after_s = on_silence, mute_after_s
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._ticked_at = self._loop.time()
        self._is_silent = False
        self._timer = self._loop.call_later(interval_s, self._tick)

    @property
    def silence_s(self) -> float:
        """How long the peer has not been heard."""
        self._heard_at = max(self._heard_at, self._node.heard_at(self._address) or 0.0)
        return max(0.0, self._loop.time() - self._heard_at)

    def close(self) -> None:
        """Send no more beats and report nothing more; harmless at any time."""
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        is_late = now - self._ticked_at > LATE_TICKS * self._interval_s
        self._ticked_at = now
        self._timer = self._loop.call_later(self._interval_s, self._tick)
        silence_s = self.silence_s
        if silence_s <= self._mute_after_s or is_late:
            self._node.beat(self._address)
        if silence_s <= self._limit_s:
            self._is_silent = False
        elif not self._is_silent and not is_late:
            self._is_silent = True
            self._on_silence(silence_s)
