"""A worker's time under one controller after another, and as an orphan in between.

The lives of a controller have one address and are told apart by their generations.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dvrt.actors.actor import Actor, Context
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.errors import ProtocolError, Unavailable
from dvrt.processes.lease import WATCHDOG_GRACE_S, Lease, Watchdog
from dvrt.processes.worker import start_ticks
from dvrt.protocol.claims import Claim, Dismiss, Holdings, Survey, Surveyed
from dvrt.protocol.messages import Joined
from dvrt.wire import Message

SURVEY_LIMIT_S = 10.0
"""How long a worker may take to say what it has: the steps that it computes are finished first."""
_log = logging.getLogger("dvrt.processes")


class Tenure:
    """Holds a lease of the controller; ``on_end(reason, is_orderly)`` is called when no other one
    can follow: after an orderly end at once, else when nobody has claimed the worker ``grace_s``
    after its lease ended.

    A loop that is stuck for longer than a lease ends the process, of an orphan as well.
    """

    def __init__(
        self,
        node: Node,
        controller: ActorRef,
        *,
        interval_s: float,
        length_s: float,
        grace_s: float,
        generation: int,
        watchdog: Watchdog,
        on_end: Callable[[str, bool], None],
    ) -> None:
        self.generation = generation
        self._node, self._controller = node, controller
        self._interval_s, self._length_s, self._grace_s = interval_s, length_s, grace_s
        self._watchdog, self._on_end = watchdog, on_end
        self._loop = asyncio.get_running_loop()
        self._orphan_until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lease = self._begin()

    @property
    def is_orphan(self) -> bool:
        return self._orphan_until is not None

    def renew(self, generation: int) -> None:
        """A later life of the controller claims the worker. Raises Unavailable for any other."""
        if generation <= self.generation:
            raise self._refusal()
        self.generation = generation
        self._stop_waiting()
        self._lease.release()
        self._lease = self._begin()

    def dismiss(self, generation: int, reason: str) -> None:
        """That life has no use for the worker. Raises Unavailable for one before the present."""
        if generation < self.generation:
            raise self._refusal()
        self._on_end(reason, True)

    def close(self, *, stop_s: float) -> None:
        """The worker ends; the watchdog ends the process unless ``over`` comes in ``stop_s``."""
        self._stop_waiting()
        self._lease.close(stop_s=stop_s)

    def over(self) -> None:
        """The worker has ended in good time."""
        self._lease.over()

    def _refusal(self) -> Unavailable:
        return Unavailable(f"this worker has served life {self.generation} of its controller")

    def _begin(self) -> Lease:
        return Lease(
            self._node,
            self._controller,
            interval_s=self._interval_s,
            length_s=self._length_s,
            watchdog=self._watchdog,
            on_end=self._lease_ended,
        )

    def _lease_ended(self, reason: str, is_orderly: bool) -> None:
        if is_orderly or not self._grace_s:
            self._on_end(reason, is_orderly)
        elif not self.is_orphan:
            self._lease.release()
            self._orphan_until = self._loop.time() + self._grace_s
            text = "worker %s is an orphan and waits %g s to be claimed: %s"
            _log.warning(text, self._node.name, self._grace_s, reason)
            self._wait()

    def _wait(self) -> None:
        """Be there for a claim, and show the watchdog that the loop turns."""
        assert self._orphan_until is not None
        left_s = self._orphan_until - self._loop.time()
        if left_s <= 0:
            self._orphan_until = None
            self._on_end(f"nobody claimed it within {self._grace_s:g} s", False)
            return
        self._watchdog.arm(self._length_s + WATCHDOG_GRACE_S)
        self._timer = self._loop.call_later(min(left_s, self._length_s / 8), self._wait)

    def _stop_waiting(self) -> None:
        self._orphan_until = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Custodian(Actor):
    """Answers for a worker when a later life of its controller calls."""

    def __init__(self, tenure: Tenure, joined: Joined, *, terms: bytes) -> None:
        self._tenure, self._joined, self._terms = tenure, joined, terms

    async def receive(self, message: Message, context: Context) -> Message | None:
        match message:
            case Claim():
                return await self._claimed(message)
            case Dismiss(generation=generation, reason=reason):
                self._tenure.dismiss(generation, reason)
            case _:
                raise ProtocolError(f"a custodian does not take {type(message).__name__}")
        return None

    async def _claimed(self, claim: Claim) -> Holdings:
        self._tenure.renew(claim.generation)
        host = self.node.ref(self._joined.host_actor)
        found = await host.ask(Survey(below=claim.below), deadline_s=SURVEY_LIMIT_S)
        if not isinstance(found, Surveyed):
            raise ProtocolError(f"a host answered {type(found).__name__}")
        started = await asyncio.to_thread(start_ticks, self._joined.pid) or 0
        return Holdings(joined=self._joined, started=started, terms=self._terms, surveyed=found)
