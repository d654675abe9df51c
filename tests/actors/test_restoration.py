"""Logs come back from whoever has them; every one that is wanted is answered once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from dvrt.actors.actor import Actor, Context
from dvrt.cluster.restoration import ARRIVAL_LIMIT_S, SEND_LIMIT_S, Restorer
from dvrt.cluster.topology import Seat
from dvrt.control.events import Restore, Wanted
from dvrt.protocol.messages import Arrived, LogRange, ReplicaSent, SendReplica
from dvrt.wire import Message
from tests.actors.crew import make_node

pytestmark = pytest.mark.virtual

LOGS = tuple(Wanted(slot=slot, seq=10 + slot, epoch=1, length=50) for slot in range(3))


class Holder(Actor):
    """Says that it sent what it ``has``; the stage gets all of it but what is ``spoilt``."""

    def __init__(self, trial: Trial, has: set[int], *, spoilt: set[int], delay_s: float) -> None:
        self.trial, self.has, self.spoilt, self.delay_s = trial, has, spoilt, delay_s
        self.asked: list[tuple[LogRange, ...]] = []

    async def receive(self, message: Message, context: Context) -> Message | None:
        assert isinstance(message, SendReplica)
        self.asked.append(message.ranges)
        await asyncio.sleep(self.delay_s)
        sent = tuple(each for each in message.ranges if each.slot in self.has)
        for each in sent:
            length = 0 if each.slot in self.spoilt else each.stop
            self.trial.arrive(each, length)
        return ReplicaSent(ranges=sent)


class FakeSeat:
    """What a restorer looks at in a seat."""

    key = (4, 2)
    actor = "local://stage/p4-s2"
    holders: tuple[str, ...] = ()
    order = SimpleNamespace(spec=SimpleNamespace(layers=(2, 4)))


class Trial:
    """A restorer, holders by name, and what was answered."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.holders: dict[str, str] = {}
        self.actors: dict[str, Holder] = {}
        self.answers: list[tuple[int, int]] = []
        self.done: list[Any] = []
        self.lost: set[tuple[int, int]] = set()
        self.seat: Any = FakeSeat()
        roster: Any = SimpleNamespace(has_holder=lambda actor: actor in self.holders.values())
        self.restorer = Restorer(node, roster, answer=self._answered, done=self.done.append)

    def holder(
        self,
        name: str,
        has: set[int],
        *,
        spoilt: set[int] | None = None,
        lost: set[int] | None = None,
        delay_s: float = 0.5,
    ) -> None:
        actor = Holder(self, has, spoilt=spoilt or set(), delay_s=delay_s)
        self.actors[name] = actor
        self.holders[name] = str(self.node.spawn(actor, name=name))
        self.seat.holders = (*self.seat.holders, self.holders[name])
        self.lost |= {(len(self.actors), slot) for slot in lost or set()}

    def arrive(self, log: LogRange, length: int) -> None:
        asked = sum(len(actor.asked) for actor in self.actors.values())
        if (asked, log.slot) in self.lost:
            return
        message = Arrived(
            pipeline=4, stage=2, slot=log.slot, seq=log.seq, epoch=log.epoch, length=length
        )
        assert self.restorer.arrived(self.seat, message)

    async def run(self, logs: tuple[Wanted, ...] = LOGS) -> dict[int, int]:
        self.restorer.begin(self.seat, Restore(pipeline=4, stage=2, logs=logs))
        async with asyncio.timeout(1000):
            while not self.done:
                await asyncio.sleep(0.1)
        assert len(self.answers) == len(logs)
        return dict(self.answers)

    def _answered(self, seat: Seat, wanted: Wanted, length: int) -> None:
        self.answers.append((wanted.slot, length))


@asynccontextmanager
async def trial() -> AsyncIterator[Trial]:
    async with make_node("local") as node:
        made = Trial(node)
        try:
            yield made
        finally:
            await made.restorer.aclose()


async def test_one_holder_has_everything() -> None:
    async with trial() as t:
        t.holder("a", {0, 1, 2})
        assert await t.run() == {0: 50, 1: 50, 2: 50}


async def test_the_next_holder_is_asked_for_the_rest_only() -> None:
    async with trial() as t:
        t.holder("a", {0})
        t.holder("b", {1})
        t.holder("c", {0, 1})
        assert await t.run() == {0: 50, 1: 50, 2: 0}
        assert [each.slot for each in t.actors["b"].asked[0]] == [1, 2]
        assert [each.slot for each in t.actors["c"].asked[0]] == [2]


async def test_damaged_and_lost_logs_come_from_another_copy() -> None:
    async with trial() as t:
        t.holder("a", {0, 1, 2}, spoilt={0}, lost={1})
        t.holder("b", {0, 1, 2})
        began = asyncio.get_running_loop().time()
        assert await t.run() == {0: 50, 1: 50, 2: 50}
        assert asyncio.get_running_loop().time() - began < ARRIVAL_LIMIT_S + 2


async def test_holders_that_are_gone_or_never_answer_cost_time_only() -> None:
    async with trial() as t:
        t.holder("a", {0, 1, 2})
        t.holder("b", {0, 1, 2}, delay_s=1e6)
        t.holder("c", {0, 1, 2})
        del t.holders["a"]
        began = asyncio.get_running_loop().time()
        assert await t.run() == {0: 50, 1: 50, 2: 50}
        assert asyncio.get_running_loop().time() - began < SEND_LIMIT_S + 2
        assert t.actors["a"].asked == []
        await t.node.stop("b", "enough")


async def test_a_holder_that_dies_while_it_is_asked() -> None:
    async with trial() as t:
        t.holder("a", {0, 1, 2}, delay_s=5.0)
        task = asyncio.create_task(t.run())
        await asyncio.sleep(1.0)
        await t.node.stop("a", "it was killed")
        assert await task == {0: 0, 1: 0, 2: 0}


async def test_without_holders_nothing_comes_back() -> None:
    async with trial() as t:
        assert await t.run() == {0: 0, 1: 0, 2: 0}


async def test_a_stage_that_is_lost_again_is_answered_no_more() -> None:
    async with trial() as t:
        t.holder("a", {0, 1, 2}, delay_s=1.0)
        t.restorer.begin(t.seat, Restore(pipeline=4, stage=2, logs=LOGS))
        await asyncio.sleep(0.5)
        t.restorer.abandon(t.seat)
        t.actors["a"].has = set()
        await asyncio.sleep(5.0)
        assert (t.answers, t.done) == ([], [])
        again = tuple(replace(each, epoch=2) for each in LOGS)
        assert await t.run(again) == {0: 0, 1: 0, 2: 0}


async def test_what_arrives_for_others_is_not_taken() -> None:
    async with trial() as t:
        t.holder("a", {0, 1, 2})
        await t.run()
        stranger = Arrived(pipeline=4, stage=2, slot=0, seq=10, epoch=7, length=9)
        assert not t.restorer.arrived(t.seat, stranger)
        late = Arrived(pipeline=4, stage=2, slot=0, seq=10, epoch=1, length=50)
        assert t.restorer.arrived(t.seat, late)
        assert len(t.answers) == 3
