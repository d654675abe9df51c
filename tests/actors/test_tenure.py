"""A worker between two lives of its controller: it waits, is claimed or dismissed, or ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dvrt.actors.actor import Actor, Context
from dvrt.actors.node import Node
from dvrt.errors import ActorGone, DvrtError, StageFailed, Unavailable
from dvrt.processes.nursery import Nursery
from dvrt.processes.tenure import Custodian, Tenure
from dvrt.processes.worker import start_ticks
from dvrt.protocol.claims import CUSTODIAN, Claim, Dismiss, Survey, Surveyed
from dvrt.protocol.messages import Joined
from dvrt.wire import Message
from tests.actors.crew import Order, Recorder, Text, make_node
from tests.actors.test_heartbeat import Dog
from tests.actors.test_nursery import CREW

LEASE_S, GRACE_S = 4.0, 60.0


class Host(Actor):
    async def receive(self, message: Message, context: Context) -> Message | None:
        assert isinstance(message, Survey)
        return Surveyed(stages=(), is_whole=message.below == 7)


class Tenant:
    """A worker's node with a tenure under ``local://court``, life 2 of it."""

    def __init__(self, node: Node, grace_s: float) -> None:
        self.node, self.dog = node, Dog()
        self.ends: list[tuple[float, str, bool]] = []
        self.loop = asyncio.get_running_loop()
        self.tenure = Tenure(
            node,
            node.ref("local://court/controller"),
            interval_s=0.2,
            length_s=LEASE_S,
            grace_s=grace_s,
            generation=2,
            watchdog=self.dog,
            on_end=lambda why, is_orderly: self.ends.append((self.loop.time(), why, is_orderly)),
        )
        host = node.spawn(Host(), name="host")
        joined = Joined(worker="w", pid=os.getpid(), host_actor=str(host))
        node.spawn(Custodian(self.tenure, joined, terms=b"terms"), name=CUSTODIAN)

    async def outlast(self, seconds: int) -> None:
        for _ in range(seconds):
            await asyncio.sleep(1)
            assert 3.0 < self.dog.until - self.loop.time() <= LEASE_S + 1.0
            assert self.ends == []


@asynccontextmanager
async def tenant(grace_s: float = GRACE_S) -> AsyncIterator[Tenant]:
    async with make_node("local", "worker") as node:
        here = Tenant(node, grace_s)
        try:
            yield here
        finally:
            here.tenure.close(stop_s=1.0)
            here.tenure.over()


@asynccontextmanager
async def home() -> AsyncIterator[Node]:
    """One life of the controller's node."""
    node = Node(name="controller", address="local://court", secret=b"a secret of the tests")
    async with node:
        node.spawn(Recorder(), name="controller")
        yield node


@pytest.mark.virtual
@pytest.mark.may_block
async def test_an_orphan_waits_for_its_grace_and_ends() -> None:
    async with home() as controller, tenant() as here:
        await here.outlast(30)
        controller.abort()
        at = here.loop.time()
        await here.outlast(59)
        assert here.tenure.is_orphan
        await asyncio.sleep(2)
        ((when, why, is_orderly),) = here.ends
        assert abs(when - at - GRACE_S) < 0.01
        assert (why, is_orderly) == ("nobody claimed it within 60 s", False)
        assert not here.tenure.is_orphan


@pytest.mark.virtual
@pytest.mark.may_block
async def test_without_a_grace_it_ends_at_once() -> None:
    async with home() as controller, tenant(grace_s=0.0) as here:
        await here.outlast(3)
        controller.abort()
        await asyncio.sleep(0.1)
        assert [is_orderly for _, _, is_orderly in here.ends] == [False]


@pytest.mark.virtual
@pytest.mark.may_block
async def test_an_ordered_end_is_the_end() -> None:
    async with home() as controller, tenant() as here:
        await here.outlast(3)
        await controller.stop("controller", "enough")
        await asyncio.sleep(0.1)
        assert [is_orderly for _, _, is_orderly in here.ends] == [True]


@pytest.mark.virtual
@pytest.mark.may_block
async def test_a_later_life_claims_it_and_its_lease_begins_anew() -> None:
    async with tenant() as here:
        async with home() as controller:
            await here.outlast(10)
            controller.abort()
        await here.outlast(30)
        async with home() as controller:
            custodian = controller.ref(f"{here.node.address}/{CUSTODIAN}")
            holdings = await custodian.ask(Claim(generation=3, below=7), deadline_s=5)
            assert holdings.surveyed.is_whole
            assert (holdings.terms, holdings.joined.worker) == (b"terms", "w")
            assert holdings.started == await asyncio.to_thread(start_ticks, os.getpid())
            await here.outlast(100)
            assert not here.tenure.is_orphan
            controller.abort()
        await here.outlast(30)
        assert here.tenure.is_orphan


@pytest.mark.virtual
@pytest.mark.may_block
@pytest.mark.parametrize("generation", [0, 1, 2])
async def test_an_earlier_life_is_refused(generation: int) -> None:
    async with home() as controller, tenant() as here:
        await here.outlast(3)
        custodian = controller.ref(f"{here.node.address}/{CUSTODIAN}")
        with pytest.raises(Unavailable, match="has served life 2"):
            await custodian.ask(Claim(generation=generation, below=7), deadline_s=5)
        if generation < 2:
            with pytest.raises(Unavailable, match="has served life 2"):
                await custodian.ask(Dismiss(generation=generation, reason="go"), deadline_s=5)
        await here.outlast(3)


@pytest.mark.virtual
@pytest.mark.may_block
async def test_who_is_dismissed_ends_in_order() -> None:
    async with home() as controller, tenant() as here:
        custodian = controller.ref(f"{here.node.address}/{CUSTODIAN}")
        await custodian.ask(Claim(generation=3, below=7), deadline_s=5)
        await custodian.ask(Dismiss(generation=3, reason="no place"), deadline_s=5)
        assert [end[1:] for end in here.ends] == [("no place", True)]


@pytest.mark.virtual
@pytest.mark.may_block
async def test_who_does_not_know_the_secret_claims_nobody() -> None:
    async with tenant() as here, Node(name="thief", address="local://", secret=b"guess") as thief:
        custodian = thief.ref(f"{here.node.address}/{CUSTODIAN}")
        with pytest.raises(ActorGone):
            await custodian.ask(Claim(generation=9, below=7), deadline_s=5)
        assert here.tenure.generation == 2


@pytest.mark.virtual
@pytest.mark.may_block
async def test_rubbish_harms_no_custodian() -> None:
    async with home() as controller, tenant() as here:
        custodian = controller.ref(f"{here.node.address}/{CUSTODIAN}")
        with pytest.raises(DvrtError, match="does not take Text"):
            await custodian.ask(Text(text="hello"), deadline_s=5)
        await here.outlast(3)


async def test_a_nursery_adopts_a_process_and_no_other_with_its_pid() -> None:
    async with Nursery(preload=[CREW]) as former, Nursery(preload=[CREW]) as nursery:
        order = Order(what="polite")
        worker = await former.spawn("tests.actors.crew:obey", order, name="w")
        started = await asyncio.to_thread(start_ticks, worker.pid)
        assert started is not None
        with pytest.raises(StageFailed, match="is another one"):
            await nursery.adopt("w", worker.pid, started + 1)
        adopted = await nursery.adopt("w", worker.pid, started)
        assert adopted.exit is None
        adopted.terminate()
        assert (await worker.wait()).signal or worker.exit is not None
        assert not (await adopted.wait()).is_clean
        with pytest.raises(StageFailed, match="no process"):
            await nursery.adopt("w", 2**22 + 1, started)


def test_the_moment_of_a_process_is_its_own() -> None:
    assert start_ticks(os.getpid()) == start_ticks(os.getpid())
    assert start_ticks(os.getpid()) != start_ticks(1)
    assert start_ticks(2**22 + 1) is None
