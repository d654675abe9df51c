"""Actors on one node and on two: order, asks, errors, lives; in process and over sockets."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from dvrt.actors.actor import Actor, Context
from dvrt.actors.envelope import Acknowledged
from dvrt.errors import (
    ActorGone,
    AskTimeout,
    ConfigError,
    OutOfMemory,
    RequestRejected,
    WireError,
)
from dvrt.wire import Message
from tests.actors.crew import (
    Oracle,
    Pair,
    Recorder,
    Text,
    make_node,
    seen_from,
    two_nodes,
    wait_until,
)


async def test_messages_arrive_in_order_with_sender_and_regions(place, loop_kind) -> None:
    async with Pair(place) as (here, there):
        recorder = Recorder()
        target = seen_from(here, there.spawn(recorder, name="recorder"))
        me = here.spawn(Recorder(), name="me")
        array = np.arange(6, dtype=np.float32)
        for i in range(200):
            await target.tell(Text(text=str(i)), array, b"tail", b"", sender=me)
        array[:] = 0
        await recorder.wait_for(200)
        assert recorder.texts == [str(i) for i in range(200)]
        for _, context in recorder.got:
            assert context.sender == me
            assert [type(each) for each in context.attachments] == [bytearray] * 3
            assert np.frombuffer(context.attachments[0], np.float32).tolist() == [0, 1, 2, 3, 4, 5]
            assert context.attachments[1:] == [b"tail", b""]
        sender = recorder.got[0][1].sender
        assert sender is not None
        await sender.tell(Text(text="back"))
        await wait_until(lambda: here._cells["me"].actor.got)


async def test_asks_are_answered(place, loop_kind) -> None:
    async with Pair(place) as (here, there):
        oracle = seen_from(here, there.spawn(Oracle(), name="oracle"))
        answers = await asyncio.gather(
            *(oracle.ask(Text(text=f"q{i}"), bytes(i), deadline_s=5) for i in range(50))
        )
        assert answers == [Text(text=f"Q{i}", number=i) for i in range(50)]
        assert await oracle.ask(Text(text="nothing"), deadline_s=5) == Acknowledged()
        assert here.statistics().asks == 0


async def test_an_error_is_an_answer_and_the_actor_lives_on(place) -> None:
    async with Pair(place) as (here, there):
        oracle = seen_from(here, there.spawn(Oracle(), name="oracle"))
        with pytest.raises(RequestRejected, match="no such colour") as rejected:
            await oracle.ask(Text(text="reject"), deadline_s=5)
        assert rejected.value.param == "colour"
        with pytest.raises(OutOfMemory) as memory:
            await oracle.ask(Text(text="memory"), deadline_s=5)
        assert (memory.value.needed_bytes, memory.value.free_bytes) == (7, 3)
        assert await oracle.ask(Text(text="still there"), deadline_s=5) == Text(text="STILL THERE")


@pytest.mark.parametrize(("text", "reason"), [("crash", "oracle broke"), ("rubbish", "WireError")])
async def test_a_crash_ends_the_actor_and_all_who_wait_are_told(place, text, reason) -> None:
    async with Pair(place) as (here, there):
        oracle = seen_from(here, there.spawn(Oracle(), name="oracle"))
        told: list[str] = []
        here.watch(oracle, lambda ref, why: told.append((ref, why)))
        asks = [
            asyncio.create_task(oracle.ask(Text(text=each), deadline_s=5))
            for each in (text, "behind it", "and behind")
        ]
        await asyncio.wait(asks)
        for ask in asks:
            assert isinstance(ask.exception(), ActorGone) and reason in str(ask.exception())
        await wait_until(lambda: told)
        ((ref, why),) = told
        assert ref == oracle
        assert why.startswith("failed: ") and reason in why
        with pytest.raises(ActorGone):
            await oracle.ask(Text(text="anybody"), deadline_s=5)
        there.spawn(Oracle(), name="oracle")
        assert await oracle.ask(Text(text="again"), deadline_s=5) == Text(text="AGAIN")


async def test_a_dvrt_error_in_a_tell_ends_the_actor() -> None:
    async with make_node() as node:
        oracle = node.spawn(Oracle(), name="oracle")
        told: list[str] = []
        node.watch(oracle, lambda _, why: told.append(why))
        await oracle.tell(Text(text="reject"))
        await wait_until(lambda: told)
        assert told == ["failed: RequestRejected: no such colour"]


async def test_an_ask_ends_at_its_deadline_and_late_answers_are_counted(place) -> None:
    class Slow(Actor):
        async def receive(self, message: Message, context: Context) -> Message:
            await asyncio.sleep(0.2)
            return message

    async with Pair(place) as (here, there):
        slow = seen_from(here, there.spawn(Slow(), name="slow"))
        with pytest.raises(AskTimeout, match=r"slow did not answer within 0\.05 s"):
            await slow.ask(Text(text="x"), deadline_s=0.05)
        cancelled = asyncio.create_task(slow.ask(Text(text="y"), deadline_s=5))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await wait_until(lambda: here.statistics().counters.late_answers == 2)
        assert here.statistics().asks == 0


async def test_nobody_there(place) -> None:
    async with Pair(place) as (here, there):
        ghost = here.ref(f"{there.address}/ghost")
        told: list[str] = []
        here.watch(ghost, lambda _, why: told.append(why))
        with pytest.raises(ActorGone, match="ghost"):
            await ghost.ask(Text(text="x"), deadline_s=5)
        await wait_until(lambda: told)
        assert "ghost" in told[0]
        if place == "same node":
            with pytest.raises(ActorGone):
                await ghost.tell(Text(text="x"))
        else:
            await ghost.tell(Text(text="x"))
            await wait_until(lambda: there.statistics().counters.undeliverable == 2)


async def test_names_and_references() -> None:
    async with make_node() as node:
        ref = node.spawn(Recorder(), name="one")
        assert str(ref) == ref.address == f"{node.address}/one"
        assert node.ref(str(ref)) == ref and hash(node.ref(str(ref))) == hash(ref)
        assert ref != node.ref(f"{node.address}/two") and ref != "one"
        assert (ref.node_address, ref.name) == (node.address, "one")
        with pytest.raises(ConfigError, match="already"):
            node.spawn(Recorder(), name="one")
        for name in ("", "a/b", "x" * 300):
            with pytest.raises(ConfigError, match="actor name"):
                node.spawn(Recorder(), name=name)
        for text in ("", "one", "tcp://", "tcp://host:1", "tcp://host:1/", "/one", "://x/"):
            with pytest.raises(ConfigError, match="actor"):
                node.ref(text)
    with pytest.raises(ActorGone, match="closed"):
        node.spawn(Recorder(), name="late")


async def test_what_is_no_message_is_refused_where_it_is_sent(place) -> None:
    async with Pair(place) as (here, there):
        recorder = Recorder()
        target = seen_from(here, there.spawn(recorder, name="recorder"))
        with pytest.raises(WireError, match="not a message"):
            await target.tell("text")
        with pytest.raises(WireError, match="limit"):
            await target.tell(Text(text="x" * (17 << 20)))
        with pytest.raises(WireError, match="regions"):
            await target.tell(Text(text="x"), *[b"x"] * 5000)
        with pytest.raises(TypeError):
            await target.tell(Text(text="x"), object())
        await target.tell(Text(text="fine"))
        await recorder.wait_for(1)
        assert recorder.texts == ["fine"]


async def test_only_own_actors_can_be_senders() -> None:
    async with two_nodes("local") as (a, b):
        foreign = b.spawn(Recorder(), name="foreign")
        with pytest.raises(ValueError, match="not of this node"):
            await seen_from(a, foreign).tell(Text(text="x"), sender=foreign)


async def test_a_watch_that_was_cancelled_is_silent() -> None:
    async with two_nodes("local") as (a, b):
        ref = seen_from(a, b.spawn(Recorder(), name="recorder"))
        told: list[str] = []
        first = a.watch(ref, lambda _, why: told.append("first " + why))
        second = a.watch(ref, lambda _, why: told.append("second " + why))
        assert first.is_open and a.statistics().watches == 2
        first.cancel()
        first.cancel()
        assert not first.is_open
        await a.ref(str(ref)).ask(Text(text="x"), deadline_s=5)
        await b.stop("recorder", "over")
        await wait_until(lambda: told)
        assert told == ["second stopped: over"] and not second.is_open
        assert a.statistics().watches == 0
