"""Heartbeats and leases in virtual time: who is heard, who is silent, and what that ends."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.actors.heartbeat import Heartbeat
from dvrt.actors.limits import NodeLimits
from dvrt.processes.lease import Lease
from dvrt.transport import get_transport
from dvrt.transport.faults import Fault, FaultKind
from dvrt.transport.faulty import FaultyTransport
from tests.actors.crew import Oracle, Recorder, Text, make_node, two_nodes, wait_until

pytestmark = pytest.mark.virtual


class Beating:
    """A heartbeat that keeps what it reports."""

    def __init__(self, node, address, *, limit_s: float = 1.0) -> None:
        self.silences: list[float] = []
        self.heartbeat = Heartbeat(
            node, address, interval_s=0.2, limit_s=limit_s, on_silence=self.silences.append
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        self.heartbeat.close()


async def _linked(a, b) -> None:
    b.spawn(Oracle(), name="oracle")
    await a.ref(f"{b.address}/oracle").ask(Text(text="x"), deadline_s=5)


async def test_beats_both_ways_keep_the_silence_short_for_hours() -> None:
    async with two_nodes("local") as (a, b):
        await _linked(a, b)
        with Beating(a, b.address) as here, Beating(b, a.address) as there:
            for _ in range(10):
                await asyncio.sleep(100.07)
                assert here.heartbeat.silence_s <= 0.2 and there.heartbeat.silence_s <= 0.2
            assert here.silences == there.silences == []


async def test_one_side_alone_may_beat() -> None:
    async with two_nodes("local") as (a, b):
        await _linked(a, b)
        with Beating(b, a.address) as there:
            await asyncio.sleep(100)
            assert there.silences == [] and there.heartbeat.silence_s <= 0.2


async def test_silence_is_reported_once_and_again_after_a_return() -> None:
    pauses = [Fault(kind=FaultKind.STALL, message=n, channel=0, seconds=5) for n in (20, 60)]
    network = FaultyTransport(get_transport("local"), pauses)
    async with make_node("local", "b") as b, make_node("local", "a", network=network) as a:
        await _linked(a, b)
        with Beating(a, b.address) as here:
            await wait_until(lambda: here.silences, limit_s=30)
            await wait_until(lambda: here.heartbeat.silence_s < 0.2, limit_s=30)
            assert len(here.silences) == 1 and 1.0 < here.silences[0] <= 1.3
            await wait_until(lambda: len(here.silences) == 2, limit_s=30)
            await asyncio.sleep(60)
            assert len(here.silences) == 2 and here.heartbeat.silence_s < 0.4


async def test_a_half_open_connection_is_silent_though_it_looks_alive() -> None:
    fault = Fault(kind=FaultKind.HALF_OPEN, message=20, channel=0)
    network = FaultyTransport(get_transport("local"), [fault])
    async with make_node("local", "b") as b, make_node("local", "a", network=network) as a:
        await _linked(a, b)
        with Beating(a, b.address) as here, Beating(b, a.address) as there:
            await asyncio.sleep(30)
            assert len(here.silences) == len(there.silences) == 1
            told: list[str] = []
            b.watch(b.ref(f"{a.address}/anybody"), lambda _, why: told.append(why))
            b.fence(a.address, "silent for too long")
            await wait_until(lambda: told)
            assert "silent for too long" in told[0]


async def test_a_receiver_that_does_not_read_blames_nobody() -> None:
    limits = NodeLimits(mailbox_messages=1, stop_s=0.5)
    async with two_nodes("local", limits=limits) as (a, b):
        recorder = Recorder()
        recorder.gate.clear()
        target = a.ref(str(b.spawn(recorder, name="recorder")))
        for i in range(4):
            await target.tell(Text(text=str(i)))
        with Beating(b, a.address) as there:
            await asyncio.sleep(60)
            assert there.silences == []
            recorder.gate.set()
            await asyncio.sleep(60)
            assert there.silences == [] and there.heartbeat.silence_s <= 0.2


async def test_traffic_counts_as_beats() -> None:
    async with two_nodes("local") as (a, b):
        await _linked(a, b)
        oracle = a.ref(f"{b.address}/oracle")
        with Beating(a, b.address) as here:
            for _ in range(50):
                await asyncio.sleep(0.9)
                await oracle.ask(Text(text="x"), deadline_s=5)
            assert here.silences == []


async def test_without_a_link_silence_grows() -> None:
    async with make_node() as node:
        with Beating(node, "local://nobody") as here:
            await asyncio.sleep(10)
            assert len(here.silences) == 1 and here.heartbeat.silence_s == 10.0


class Dog:
    """A watchdog that keeps until when it was armed."""

    def __init__(self) -> None:
        self.until = 0.0

    def arm(self, timeout_s: float) -> None:
        self.until = asyncio.get_running_loop().time() + timeout_s

    def disarm(self) -> None:
        self.until = 0.0


class Leased:
    """A lease of four seconds, its watchdog, and when it ended and why."""

    def __init__(self, worker, controller) -> None:
        self.loop = asyncio.get_running_loop()
        self.ends: list[tuple[float, str, bool]] = []
        self.dog = Dog()
        self.lease = Lease(
            worker,
            controller,
            interval_s=0.2,
            length_s=4.0,
            watchdog=self.dog,
            on_end=lambda why, is_orderly: self.ends.append((self.loop.time(), why, is_orderly)),
        )

    async def outlast(self, seconds: int) -> None:
        for _ in range(seconds):
            await asyncio.sleep(1)
            assert 4.0 < self.dog.until - self.loop.time() <= 5.0 and self.ends == []


@pytest.mark.parametrize("ending", ["actor", "node", "abort"])
async def test_a_lease_ends_with_its_controller(ending) -> None:
    async with make_node("local", "worker") as worker:
        async with make_node("local", "controller") as controller:
            ref = worker.ref(str(controller.spawn(Oracle(), name="oracle")))
            leased = Leased(worker, ref)
            await leased.outlast(100)
            at = leased.loop.time()
            if ending == "actor":
                await controller.stop("oracle", "over")
            elif ending == "abort":
                controller.abort()
            else:
                await controller.aclose()
            await wait_until(lambda: leased.ends)
            when, why, is_orderly = leased.ends[0]
            assert is_orderly == (ending != "abort")
            assert when - at < 0.1 and why.startswith("the controller is gone")
            leased.lease.close(stop_s=1.0)
            assert leased.dog.until == leased.loop.time() + 1.0
            leased.lease.over()
            assert leased.dog.until == 0.0
            await asyncio.sleep(30)
            assert len(leased.ends) == 1


async def test_a_lease_ends_when_nothing_is_heard() -> None:
    fault = Fault(kind=FaultKind.HALF_OPEN, message=100, channel=0)
    network = FaultyTransport(get_transport("local"), [fault])
    async with make_node("local", "controller") as controller:
        async with make_node("local", "worker", network=network) as worker:
            leased = Leased(worker, worker.ref(str(controller.spawn(Oracle(), name="oracle"))))
            await leased.outlast(15)
            await wait_until(lambda: leased.ends, limit_s=30)
            when, why, _ = leased.ends[0]
            assert why == "nothing was heard from the controller for 4.2 s" and 23 < when < 25
            assert 0.9 < leased.dog.until - when < 2.1
            leased.lease.close(stop_s=1.0)
