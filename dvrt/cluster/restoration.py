"""Bringing a stage's logs back: from what it still has itself, or from workers that keep copies.

Every log that is wanted is answered once, with what could be had; whoever dies meanwhile only
makes that less. One task per Restore, which waits for nothing without a limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from dvrt.actors.node import Node
from dvrt.cluster.roster import Roster
from dvrt.cluster.topology import Seat
from dvrt.control.events import Restore, Wanted
from dvrt.errors import DvrtError
from dvrt.protocol.messages import Arrived, LogRange, ReplicaSent, SendReplica

SEND_LIMIT_S = 30.0
"""How long a holder may take to say what it has sent."""
ARRIVAL_LIMIT_S = 10.0
"""How long nothing may arrive of what a holder has sent, before the next one is asked."""

Name: TypeAlias = tuple[int, int, int]
"""A log: slot, sequence and epoch."""
Held = Callable[[Restore], Mapping[Wanted, int]]
"""Of the logs of a Restore, how much the stage has itself."""
Answer = Callable[[Seat, Wanted, int], None]
"""``(seat, wanted, length)``: the stage holds this much of the log again."""


@dataclass(slots=True, eq=False)
class _Wishes:
    """The logs that one Restore wants brought to a stage, and what has become of them."""

    open: dict[Name, Wanted]
    held: dict[Wanted, int] = field(default_factory=dict)
    answered: set[Name] = field(default_factory=set)
    arrivals: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: set[Name] = field(default_factory=set)
    task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.task is not None and self.task.done()


class Restorer:
    """Carries out Restore commands, several for one stage at a time as well; ``done(seat)`` is
    called when all logs of one are answered."""

    def __init__(
        self,
        node: Node,
        roster: Roster,
        *,
        answer: Answer,
        done: Callable[[Seat], None],
        life: int = 0,
    ) -> None:
        self._node, self._roster = node, roster
        self._answer, self._done, self._life = answer, done, life
        self._wishes: dict[Seat, list[_Wishes]] = {}
        self.held: Held = lambda command: {}

    def begin(self, seat: Seat, command: Restore) -> None:
        """Have logs brought to a stage."""
        wishes = _Wishes({_name(log): log for log in command.logs}, dict(self.held(command)))
        running = [each for each in self._wishes.get(seat, ()) if not each.is_over]
        self._wishes[seat] = [*running, wishes]
        wishes.task = asyncio.get_running_loop().create_task(
            self._restore(seat, wishes), name=f"restore {seat.key}"
        )

    def abandon(self, seat: Seat) -> None:
        """The stage is lost again: nothing of this is answered any more."""
        for wishes in self._wishes.pop(seat, ()):
            if wishes.task is not None:
                wishes.task.cancel()

    def arrived(self, seat: Seat, message: Arrived) -> bool:
        """Whether this was about a log that is, or was, to be restored."""
        name = message.slot, message.seq, message.epoch
        for wishes in self._wishes.get(seat, ()):
            if name in wishes.open or name in wishes.answered:
                self._heard(seat, wishes, name, message.length)
                return True
        return False

    def _heard(self, seat: Seat, wishes: _Wishes, name: Name, length: int) -> None:
        if name in wishes.under_way:
            wishes.under_way.discard(name)
            wishes.arrivals.set()
        if length and name in wishes.open:
            self._settle(seat, wishes, name, length)

    async def aclose(self) -> None:
        tasks = [each.task for some in self._wishes.values() for each in some if each.task]
        for seat in list(self._wishes):
            self.abandon(seat)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _restore(self, seat: Seat, wishes: _Wishes) -> None:
        for log, length in wishes.held.items():
            self._settle(seat, wishes, _name(log), length)
        for holder in seat.holders:
            if wishes.open and self._roster.has_holder(holder):
                await self._restore_from(holder, seat, wishes)
        for name in list(wishes.open):
            self._settle(seat, wishes, name, 0)
        self._done(seat)

    async def _restore_from(self, holder: str, seat: Seat, wishes: _Wishes) -> None:
        """Ask one holder for all that is still wanted, and wait until no more comes of it."""
        wishes.under_way = set(wishes.open)
        pipeline, stage = seat.key
        first, last = seat.order.spec.layers
        order = SendReplica(
            pipeline=pipeline,
            stage=stage,
            to=seat.actor,
            ranges=_ranges(wishes.open.values()),
            first=first,
            last=last,
            life=self._life,
            firms=tuple(log.firm for log in wishes.open.values()),
        )
        try:
            sent = await self._node.ref(holder).ask(order, deadline_s=SEND_LIMIT_S)
        except DvrtError:
            wishes.under_way.clear()
            return
        named = sent.ranges if isinstance(sent, ReplicaSent) else ()
        wishes.under_way &= {(log.slot, log.seq, log.epoch) for log in named}
        try:
            while wishes.under_way:
                wishes.arrivals.clear()
                async with asyncio.timeout(ARRIVAL_LIMIT_S):
                    await wishes.arrivals.wait()
        except TimeoutError:
            wishes.under_way.clear()

    def _settle(self, seat: Seat, wishes: _Wishes, name: Name, length: int) -> None:
        wanted = wishes.open.pop(name)
        wishes.answered.add(name)
        self._answer(seat, wanted, length)


def _name(log: Wanted) -> Name:
    return log.slot, log.seq, log.epoch


def _ranges(logs: Iterable[Wanted]) -> tuple[LogRange, ...]:
    return tuple(
        LogRange(slot=log.slot, seq=log.seq, epoch=log.epoch, start=0, stop=log.length)
        for log in logs
    )
