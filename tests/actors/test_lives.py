"""How actors and their nodes end, and who is told."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.actors.actor import Actor, Context
from dvrt.actors.envelope import Acknowledged
from dvrt.errors import ActorGone
from dvrt.wire import Message
from tests.actors.crew import Oracle, Pair, Recorder, Text, make_node, seen_from, wait_until


async def test_stopping_finishes_the_message_in_hand_and_refuses_the_rest(place) -> None:
    async with Pair(place) as (here, there):
        recorder = Recorder()
        recorder.gate.clear()
        target = seen_from(here, there.spawn(recorder, name="recorder"))
        told: list[str] = []
        here.watch(target, lambda _, why: told.append(why))
        asks = [asyncio.create_task(target.ask(Text(text=str(i)), deadline_s=5)) for i in range(3)]
        await recorder.wait_for(1)
        await wait_until(lambda: there.statistics().mailboxes["recorder"].items == 2)
        stopping = asyncio.create_task(there.stop("recorder", "enough"))
        await asyncio.sleep(0.01)
        recorder.gate.set()
        await stopping
        assert await asks[0] == Acknowledged()
        for ask in asks[1:]:
            with pytest.raises(ActorGone, match="enough"):
                await ask
        await wait_until(lambda: told)
        assert told == recorder.stopped == ["stopped: enough"]
        assert there.statistics().counters.dropped == 2


async def test_an_actor_may_stop_itself() -> None:
    async with make_node() as node:
        oracle = node.spawn(Oracle(), name="oracle")
        assert await oracle.ask(Text(text="stop"), deadline_s=5) == Text(text="STOP")
        with pytest.raises(ActorGone):
            await oracle.ask(Text(text="stop"), deadline_s=5)


async def test_a_message_that_takes_too_long_is_cut_short() -> None:
    async with make_node() as node:
        oracle = node.spawn(Oracle(), name="oracle")
        ask = asyncio.create_task(oracle.ask(Text(text="sleep"), deadline_s=30))
        await asyncio.sleep(0.01)
        began = asyncio.get_running_loop().time()
        await node.stop("oracle", "no time")
        assert asyncio.get_running_loop().time() - began < 2
        with pytest.raises(ActorGone, match="no time"):
            await ask


async def test_on_stop_has_a_limit_and_is_called_whatever_happened() -> None:
    class Clinging(Actor):
        def __init__(self, fail_at: str) -> None:
            self.fail_at, self.stops = fail_at, 0

        async def on_start(self) -> None:
            if self.fail_at == "start":
                raise OSError("no bed")

        async def receive(self, message: Message, context: Context) -> None:
            raise OSError("no bread")

        async def on_stop(self, reason: str) -> None:
            self.stops += 1
            if self.fail_at == "stop":
                raise OSError("no rest")
            await asyncio.sleep(60)

    async with make_node() as node:
        actors = {at: Clinging(at) for at in ("start", "receive", "stop")}
        told: dict[str, str] = {}
        for name, actor in actors.items():
            ref = node.spawn(actor, name=name)
            node.watch(ref, lambda ref, why: told.update({ref.name: why}))
        await asyncio.sleep(0)
        await node.ref(f"{node.address}/receive").tell(Text(text="x"))
        await node.stop("stop", "over")
        await wait_until(lambda: len(told) == 3)
        assert told == {
            "start": "failed: OSError: no bed",
            "receive": "failed: OSError: no bread",
            "stop": "stopped: over",
        }
        assert [actor.stops for actor in actors.values()] == [1, 1, 1]


async def test_a_task_of_the_actor_can_fail_it() -> None:
    async with make_node() as node:
        recorder = Recorder()
        ref = node.spawn(recorder, name="recorder")
        told: list[str] = []
        node.watch(ref, lambda _, why: told.append(why))
        recorder.fail(OSError("the helper broke"))
        await wait_until(lambda: told)
        assert told == ["failed: OSError: the helper broke"]


async def test_a_cancelled_future_inside_receive_is_a_failure_not_a_hang() -> None:
    class Awaiting(Actor):
        async def receive(self, message: Message, context: Context) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    async with make_node() as node:
        ref = node.spawn(Awaiting(), name="awaiting")
        with pytest.raises(ActorGone, match="CancelledError"):
            await ref.ask(Text(text="x"), deadline_s=5)


async def test_timeouts_inside_receive_work_after_a_stop_was_cut_short() -> None:
    class Patient(Actor):
        outcome = "none"

        async def receive(self, message: Message, context: Context) -> None:
            await asyncio.sleep(60)

        async def on_stop(self, reason: str) -> None:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(60)
            except TimeoutError:
                self.outcome = "timed out"

    async with make_node() as node:
        patient = Patient()
        await node.spawn(patient, name="patient").tell(Text(text="x"))
        await asyncio.sleep(0.01)
    assert patient.outcome == "timed out"


@pytest.mark.parametrize("place", ["local", "tcp"])
@pytest.mark.parametrize("ending", ["aclose", "abort"])
async def test_the_end_of_a_node_is_seen_by_asks_and_watches(place, ending) -> None:
    async with Pair(place) as (here, there):
        oracle = seen_from(here, there.spawn(Oracle(), name="oracle"))
        told: list[str] = []
        here.watch(oracle, lambda _, why: told.append(why))
        ask = asyncio.create_task(oracle.ask(Text(text="sleep"), deadline_s=30))
        await wait_until(lambda: there.statistics().counters.received == 2)
        if ending == "abort":
            there.abort()
        await there.aclose()
        with pytest.raises(ActorGone):
            await ask
        await wait_until(lambda: told)
        assert len(told) == 1
        assert ("stopped" if ending == "aclose" else "its node is gone") in told[0]
        with pytest.raises(ActorGone, match="cannot reach"):
            await oracle.ask(Text(text="x"), deadline_s=5)
        assert here.statistics().outboxes == {}


@pytest.mark.parametrize("scheme", ["local", "tcp"])
async def test_what_was_told_before_closing_arrives(scheme) -> None:
    recorder = Recorder()
    async with make_node(scheme, "there") as there:
        ref = there.spawn(recorder, name="recorder")
        async with make_node(scheme, "here") as here:
            target = here.ref(str(ref))
            await target.ask(Text(text="first"), deadline_s=5)
            for i in range(300):
                await target.tell(Text(text=str(i)), bytes(50_000))
        await recorder.wait_for(301)
    assert recorder.texts == ["first", *map(str, range(300))]
