"""A worker's lease of its controller: when it ends, the worker ends, whatever else goes on."""

from __future__ import annotations

import asyncio
import faulthandler
from collections.abc import Callable
from typing import Protocol

from dvrt.actors.cell import STOPPED
from dvrt.actors.heartbeat import Heartbeat
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef

MUTE_BEATS = 4
"""After so many intervals without a word from the controller a worker does not beat: one that is
heard and hears nothing would pass for a sound one until its lease ends."""
WATCHDOG_GRACE_S = 1.0
"""How much longer than its lease a stuck worker lives."""


class Watchdog(Protocol):
    """Ends the process when it is not armed again in time, however stuck the event loop is."""

    def arm(self, timeout_s: float) -> None: ...

    def disarm(self) -> None: ...


class ProcessWatchdog:
    """A thread outside the interpreter, which needs no lock of Python's. It writes the stack of
    every thread to stderr and ends the process with code 1."""

    def arm(self, timeout_s: float) -> None:
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=2)

    def disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()


class NoWatchdog:
    """For workers that share a process: none could be ended without ending the others."""

    def arm(self, timeout_s: float) -> None:
        """Does nothing."""

    def disarm(self) -> None:
        """Does nothing."""


class Lease:
    """Beats to the controller and calls ``on_end(reason, is_orderly)`` when it is gone.

    Gone is a controller whose actor or node ended, whose link broke, or who was silent for
    ``length_s``; in order is only an actor that was stopped. The event loop re-arms the watchdog
    a few times per ``length_s``; so a loop that is stuck for longer than the lease ends the
    process, and a short hiccup does not.
    """

    def __init__(
        self,
        node: Node,
        controller: ActorRef,
        *,
        interval_s: float,
        length_s: float,
        watchdog: Watchdog,
        on_end: Callable[[str, bool], None],
    ) -> None:
        self._length_s = length_s
        self._watchdog = watchdog
        self._loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(
            node,
            controller.node_address,
            interval_s=interval_s,
            limit_s=length_s,
            mute_after_s=MUTE_BEATS * interval_s,
            on_silence=lambda s: on_end(
                f"nothing was heard from the controller for {s:.1f} s", False
            ),
        )
        self._watch = node.watch(
            controller,
            lambda _, why: on_end(f"the controller is gone: {why}", why.startswith(STOPPED)),
        )
        self._timer = self._loop.call_soon(self._arm)

    def release(self) -> None:
        """Beat and listen no more; arming the watchdog is others' part from now on."""
        self._heartbeat.close()
        self._watch.cancel()
        self._timer.cancel()

    def close(self, *, stop_s: float) -> None:
        """As ``release``; the watchdog ends the process unless ``over`` in ``stop_s``."""
        self.release()
        self._watchdog.arm(stop_s)

    def over(self) -> None:
        """The worker has ended in good time."""
        self._watchdog.disarm()

    def _arm(self) -> None:
        left_s = self._length_s - self._heartbeat.silence_s
        self._watchdog.arm(max(left_s, self._length_s / 4) + WATCHDOG_GRACE_S)
        self._timer = self._loop.call_later(self._length_s / 8, self._arm)
