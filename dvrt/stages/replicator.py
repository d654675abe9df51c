"""Copies of one stage's logs for others to keep, sent behind the compute.

Each holder is sent what it lacks of every log, one message at a time; what is computed meanwhile
goes with the next one. So copies may fall behind, and compute never waits for them. Packing takes
the compute's time, so while steps come one upon the other it is done once a round at most, for all
microbatches together, and for each holder once in ``PAUSE_S``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial

from dvrt.actors.node import Node
from dvrt.buffers import Region
from dvrt.control.steps import Step
from dvrt.errors import ActorError, TransportError
from dvrt.kv.copied import PAUSE_S
from dvrt.kv.digest import digest_of
from dvrt.kv.spans import Span
from dvrt.protocol.messages import ReplicaGap, Replicate
from dvrt.stages.compute import Submits
from dvrt.stages.copy_log import CopyLog
from dvrt.stages.ledger import Copy, Ledger

MESSAGE_BYTES = 2 << 20
"""About so much is packed for one message at most, in one turn of the compute; the rest follows."""

RETRY_S = 0.5
"""A holder that could not be reached is tried again after so long, from the start of all logs."""

IDLE_S = 0.002
"""A stage that has got no step for so long has time to pack."""


class _Holder:
    """A replica actor; ``sent`` is the newest step that it was told of."""

    def __init__(self, actor: str) -> None:
        self.actor = actor
        self.sent = -1
        self.is_due = True
        self.task: asyncio.Task[None] | None = None


class Replicator:
    """Keeps every holder up to date with one stage's ledger."""

    def __init__(
        self,
        node: Node,
        compute: Submits,
        ledger: Ledger,
        *,
        origin: str,
        pipeline: int,
        stage: int,
        layers: Span,
        entry_bytes: int,
        copies: CopyLog,
    ) -> None:
        """``origin`` is the stage's actor; it hears of gaps. Belongs to the running loop."""
        self._node, self._compute, self._ledger = node, compute, ledger
        self._origin, self._pipeline, self._stage = origin, pipeline, stage
        self._layers, self._copies = layers, copies
        self._most = max(1, MESSAGE_BYTES // entry_bytes)
        self._holders: dict[str, _Holder] = {}
        self._step = -1
        self._fresh: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connect(self, actors: Iterable[str]) -> None:
        """These keep copies from now on; whoever is new gets all logs."""
        wanted = list(actors)
        for actor in [actor for actor in self._holders if actor not in wanted]:
            self._end(self._holders.pop(actor))
            self._on_compute(partial(self._ledger.forget, actor))
        for actor in wanted:
            if actor not in self._holders:
                holder = self._holders[actor] = _Holder(actor)
                self._on_compute(partial(self._ledger.forget, actor))
                self._start(holder)

    def stepped(self, step: Step, *, is_busy: bool) -> None:
        """A step is computed, and its result is on its way; ``is_busy`` if others wait already.

        It is copied when a microbatch comes round again, or when no step comes for a moment; for a
        holder that has just got something, after the pause.
        """
        self._step = max(self._step, step.id)
        self.busy()
        if step.microbatch in self._fresh:
            self._fresh = {step.microbatch}
            self._start_all()
            return
        self._fresh.add(step.microbatch)
        is_waited_for = False
        for holder in self._holders.values():
            if holder.task is None:
                is_waited_for = True
            else:
                holder.is_due = True
        if is_waited_for and not is_busy:
            self._timer = self._loop.call_later(IDLE_S, self._idle)

    def busy(self) -> None:
        """A step has come: copies wait for its end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _idle(self) -> None:
        self._fresh.clear()
        self._start_all()

    def _start_all(self) -> None:
        for holder in self._holders.values():
            self._start(holder)

    def gap(self, note: ReplicaGap) -> None:
        """A holder cannot join what it was sent; it gets these logs from the start."""
        holder = self._holders.get(note.holder)
        if holder is not None:
            slots = tuple(each.slot for each in note.ranges)
            self._on_compute(partial(self._ledger.mark_lost, note.holder, slots))
            self._start(holder)

    async def aclose(self) -> None:
        """Send nothing more."""
        tasks = [holder.task for holder in self._holders.values() if holder.task is not None]
        self.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abort(self) -> None:
        """As ``aclose``, without waiting."""
        self.busy()
        for holder in self._holders.values():
            self._end(holder)
        self._holders.clear()

    def _on_compute(self, work: Callable[[], None]) -> None:
        """Behind what was submitted before; the ledger is the compute's."""
        self._compute.submit(work)

    def _start(self, holder: _Holder) -> None:
        holder.is_due = True
        if holder.task is None:
            holder.task = self._loop.create_task(self._catch_up(holder))

    def _end(self, holder: _Holder) -> None:
        if holder.task is not None:
            holder.task.cancel()

    async def _catch_up(self, holder: _Holder) -> None:
        """Send until the holder lacks nothing."""
        try:
            while holder.is_due:
                holder.is_due = False
                await asyncio.sleep(await self._send_next(holder))
        finally:
            holder.task = None

    async def _send_next(self, holder: _Holder) -> float:
        """Send what the holder lacks, as far as one message goes; seconds to pause behind it.

        A holder that cannot be reached is tried again until the controller names another.
        """
        step = self._step
        copy_next = partial(self._ledger.copy_for, holder.actor, self._most)
        copy = (await self._compute.submit(copy_next)).value
        if not copy.ranges and step <= holder.sent:
            return 0.0
        try:
            await self._send(holder, copy, step if copy.is_all else holder.sent)
        except (ActorError, TransportError):
            holder.sent, holder.is_due = -1, True
            self._on_compute(partial(self._ledger.mark_lost, holder.actor))
            return RETRY_S
        holder.is_due |= not copy.is_all
        return PAUSE_S if copy.is_all else 0.0

    async def _send(self, holder: _Holder, copy: Copy, step: int) -> None:
        region = Region.of(copy.packed)
        note = Replicate(
            pipeline=self._pipeline,
            stage=self._stage,
            origin=self._origin,
            first=self._layers.start,
            last=self._layers.stop,
            step=step,
            ranges=copy.ranges,
            digest=digest_of([region.view()]),
        )
        began = self._copies.clock.time()
        await self._node.ref(holder.actor).tell(note, region)
        self._copies.add("replicas", f"up to step {step}", began, region.nbytes)
        holder.sent = step
