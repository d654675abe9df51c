"""Links between nodes: limits and back-pressure, rubbish and strangers, breakage, restarts."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import msgpack
import pytest

from dvrt.actors.envelope import Kind, pack
from dvrt.actors.limits import NodeLimits
from dvrt.actors.node import Node
from dvrt.errors import ActorGone, AskTimeout, ConfigError, OutOfMemory, TransferTimeout, WireError
from dvrt.transport import connect
from dvrt.transport.handshake import Hello, greet
from dvrt.wire import encode
from tests.actors.crew import SECRET, Oracle, Recorder, Text, make_node, two_nodes, wait_until

SCHEMES = pytest.mark.parametrize("scheme", ["local", "tcp"])


@asynccontextmanager
async def raw_peer(node: Node, **description: str):
    """A channel to the node that has proved itself, without a node of its own."""
    hello = Hello(
        node="raw",
        incarnation="raw-1",
        role="node",
        description={"address": "local://raw", **description},
    )
    channel = await connect(node.address, deadline_s=5)
    try:
        await greet(channel, hello=hello, secret=SECRET, deadline_s=5)
        yield channel
    finally:
        channel.abort()
        await channel.quiet()


@SCHEMES
async def test_a_full_mailbox_holds_up_the_sender_and_loses_nothing(scheme, loop_kind) -> None:
    limits = NodeLimits(mailbox_messages=10, outbox_messages=20, stop_s=0.5)
    async with two_nodes(scheme, limits=limits) as (a, b):
        recorder = Recorder()
        recorder.gate.clear()
        target = a.ref(str(b.spawn(recorder, name="recorder")))

        padding = "x" * 20_000

        async def flood() -> None:
            for i in range(3000):
                await target.tell(Text(text=padding, number=i), deadline_s=30)

        flooding = asyncio.create_task(flood())
        await wait_until(lambda: a.statistics().outboxes.get(b.address, None))
        await wait_until(lambda: a.statistics().outboxes[b.address].waiting == 1)
        await asyncio.sleep(0.05)
        assert not flooding.done()
        mailbox = b.statistics().mailboxes["recorder"]
        assert (mailbox.items, mailbox.highest, mailbox.waiting) == (10, 10, 1)
        assert a.statistics().outboxes[b.address].highest == 20
        with pytest.raises(OutOfMemory, match="outbox"):
            target.tell_nowait(Text(text="too much"))
        with pytest.raises(TransferTimeout, match="no room"):
            await target.tell(Text(text="too much"), deadline_s=0.01)
        with pytest.raises(AskTimeout):
            await target.ask(Text(text="too much"), deadline_s=0.01)
        recorder.gate.set()
        await flooding
        await recorder.wait_for(3000)
        assert [message.number for message, _ in recorder.got] == list(range(3000))


async def test_a_full_mailbox_of_the_own_node_holds_up_too() -> None:
    async with make_node(limits=NodeLimits(mailbox_messages=2, stop_s=0.5)) as node:
        recorder = Recorder()
        recorder.gate.clear()
        target = node.spawn(recorder, name="recorder")
        await target.tell(Text(text="0"))
        await recorder.wait_for(1)
        await target.tell(Text(text="1"))
        await target.tell(Text(text="2"))
        with pytest.raises(OutOfMemory, match="mailbox"):
            target.tell_nowait(Text(text="x"))
        with pytest.raises(TransferTimeout, match="mailbox"):
            await target.tell(Text(text="x"), deadline_s=0.01)
        waiting = asyncio.create_task(target.tell(Text(text="3")))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        recorder.gate.set()
        await waiting
        await recorder.wait_for(4)
        assert recorder.texts == ["0", "1", "2", "3"]


@SCHEMES
async def test_an_ask_that_waits_for_room_in_a_mailbox_that_closes_is_answered(scheme) -> None:
    limits = NodeLimits(mailbox_messages=1, stop_s=0.5)
    async with two_nodes(scheme, limits=limits) as (a, b):
        recorder = Recorder()
        recorder.gate.clear()
        target = a.ref(str(b.spawn(recorder, name="recorder")))
        asks = [asyncio.create_task(target.ask(Text(text=str(i)), deadline_s=5)) for i in range(3)]
        await wait_until(lambda: b.statistics().mailboxes["recorder"].waiting)
        stopping = asyncio.create_task(b.stop("recorder", "over"))
        await asyncio.sleep(0.01)
        recorder.gate.set()
        await stopping
        results = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(each).__name__ for each in results] == ["Acknowledged", *["ActorGone"] * 2]


async def test_cancelled_tells_never_harm_the_link(loop_kind) -> None:
    limits = NodeLimits(outbox_messages=4, stop_s=0.5)
    async with two_nodes("tcp", limits=limits) as (a, b):
        recorder = Recorder()
        target = a.ref(str(b.spawn(recorder, name="recorder")))
        await target.tell(Text(text="first"))
        rng = random.Random(1)
        tells = [
            asyncio.create_task(target.tell(Text(text=str(i)), bytes(1_000_000))) for i in range(60)
        ]
        for tell in rng.sample(tells, 40):
            await asyncio.sleep(0)
            tell.cancel()
        await asyncio.wait(tells)
        await target.tell(Text(text="last"))
        await wait_until(lambda: recorder.texts and recorder.texts[-1] == "last")
        arrived = [int(text) for text in recorder.texts[1:-1]]
        told = {i for i, tell in enumerate(tells) if not tell.cancelled()}
        assert arrived == sorted(arrived) and told <= set(arrived)
        assert b.statistics().counters.undecodable == 0


@SCHEMES
async def test_both_sides_may_connect_at_once(scheme, loop_kind) -> None:
    async with two_nodes(scheme) as (a, b):
        oracles = [
            a.ref(str(b.spawn(Oracle(), name="oracle"))),
            b.ref(str(a.spawn(Oracle(), name="oracle"))),
        ]
        asks = [
            oracle.ask(Text(text=f"{i}"), deadline_s=5) for i in range(40) for oracle in oracles
        ]
        answers = await asyncio.gather(*asks)
        assert [answer.text for answer in answers] == [f"{i}" for i in range(40) for _ in "ab"]


def _rubbish() -> list[bytes]:
    rng = random.Random(7)
    messages = [rng.randbytes(rng.choice([0, 1, 10, 300])) for _ in range(40)]
    good = pack(Kind.TELL, "recorder", body=encode(Text(text="x")))
    for _ in range(40):
        damaged = bytearray(good)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        if bytes(damaged) != good:
            messages.append(bytes(damaged))
    messages.append(msgpack.packb([1, "recorder", "", 0, b"rubbish"]))
    messages.append(pack(Kind.TELL, "recorder", body=encode(Text(text="x"))[:-1]))
    return messages


@SCHEMES
async def test_what_cannot_be_decoded_is_counted_and_the_link_stays(scheme) -> None:
    async with make_node(scheme) as node, raw_peer(node) as channel:
        recorder = Recorder()
        node.spawn(recorder, name="recorder")
        rubbish = _rubbish()
        for data in rubbish:
            await channel.send(data)
        await channel.send(pack(Kind.TELL, "recorder", body=encode(Text(text="still here"))))
        await wait_until(lambda: recorder.got and recorder.texts[-1] == "still here")
        counters = node.statistics().counters
        assert counters.received == len(rubbish) + 1
        assert counters.undecodable > 40


@SCHEMES
async def test_an_ask_that_cannot_be_decoded_is_answered(scheme) -> None:
    async with make_node(scheme) as node, raw_peer(node) as channel:
        node.spawn(Recorder(), name="recorder")
        await channel.send(pack(Kind.ASK, "recorder", ask=5, body=b"rubbish"))
        note = msgpack.unpackb((await channel.receive(deadline_s=5)).header)
        assert note[0] == Kind.FAILURE and note[3] == 5 and b"WireError" in note[4]


@SCHEMES
async def test_rubbish_as_an_answer_is_an_error_for_the_asker(scheme) -> None:
    async with make_node(scheme) as node, raw_peer(node) as channel:
        raw = node.ref("local://raw/actor")
        for kind, body in [(Kind.ANSWER, b"rubbish"), (Kind.FAILURE, encode(Text(text="x")))]:
            ask = asyncio.create_task(raw.ask(Text(text="?"), deadline_s=5))
            note = msgpack.unpackb((await channel.receive(deadline_s=5)).header)
            await channel.send(pack(kind, "", ask=note[3], body=body))
            with pytest.raises(WireError):
                await ask
        await channel.send(pack(Kind.ANSWER, "", ask=999, body=encode(Text(text="late"))))
        await wait_until(lambda: node.statistics().counters.late_answers == 1)


async def test_strangers_at_the_port_harm_nobody(loop_kind) -> None:
    rng = random.Random(3)
    limits = NodeLimits(strangers=8, greet_s=0.3, stop_s=0.5)
    async with make_node("tcp", limits=limits) as node:
        node.spawn(Oracle(), name="oracle")
        port = int(node.address.rpartition(":")[2])
        writers = []
        for i in range(40):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            if i % 2:
                writer.write(rng.randbytes(rng.choice([1, 16, 5000])))
            if i % 5 == 0:
                await asyncio.sleep(0.01)
        await wait_until(lambda: node.statistics().strangers == 0)
        assert node.statistics().counters.refused == 40
        for writer in writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        async with make_node("tcp", "friend") as friend:
            oracle = friend.ref(f"{node.address}/oracle")
            assert await oracle.ask(Text(text="x"), deadline_s=5) == Text(text="X")


@SCHEMES
async def test_a_peer_with_another_secret_is_refused(scheme) -> None:
    async with make_node(scheme) as node:
        address = "tcp://127.0.0.1:0" if scheme == "tcp" else "local://"
        async with Node(name="thief", address=address, secret=b"a guess") as thief:
            with pytest.raises(ActorGone, match="secret"):
                await thief.ref(f"{node.address}/oracle").ask(Text(text="x"), deadline_s=5)
        assert node.statistics().counters.refused == 1
    with pytest.raises(ConfigError, match="secret"):
        Node(name="careless", secret=b"")


@SCHEMES
async def test_a_message_beyond_the_receivers_limits_ends_the_link(scheme) -> None:
    async with two_nodes(scheme) as (a, b):
        recorder = Recorder()
        target = a.ref(str(b.spawn(recorder, name="recorder")))
        told: list[str] = []
        a.watch(target, lambda _, why: told.append(why))
        await target.tell(Text(text="fine"))
        a.limits = NodeLimits(message_regions=100_000)
        a._post._limits = a.limits
        await target.tell(Text(text="x"), *[b"x"] * 5000)
        await wait_until(lambda: told)
        assert "its node is gone" in told[0]
        await target.tell(Text(text="again"))
        await recorder.wait_for(2)
        assert recorder.texts == ["fine", "again"]


@SCHEMES
async def test_a_node_that_starts_again_is_another_node(scheme, loop_kind) -> None:
    async with make_node(scheme, "watcher") as watcher:
        first = make_node(scheme, "first", incarnation="1")
        await first.__aenter__()
        ref = watcher.ref(str(first.spawn(Oracle(), name="oracle")))
        told: list[str] = []
        watcher.watch(ref, lambda _, why: told.append(why))
        assert await ref.ask(Text(text="x"), deadline_s=5) == Text(text="X")
        first.abort()
        await first.aclose()
        second = Node(name="second", address=first.address, secret=SECRET, incarnation="2")
        async with second:
            second.spawn(Oracle(), name="oracle")
            await wait_until(lambda: told)
            assert await ref.ask(Text(text="y"), deadline_s=5) == Text(text="Y")
        assert len(told) == 1


@SCHEMES
async def test_a_fenced_node_cannot_come_back_but_its_successor_can(scheme) -> None:
    async with make_node(scheme, "controller") as controller:
        controller.spawn(Oracle(), name="oracle")
        async with make_node(scheme, "zombie", incarnation="old") as zombie:
            ref = controller.ref(str(zombie.spawn(Recorder(), name="recorder")))
            told: list[str] = []
            controller.watch(ref, lambda _, why: told.append(why))
            oracle = zombie.ref(f"{controller.address}/oracle")
            assert await oracle.ask(Text(text="x"), deadline_s=5) == Text(text="X")
            controller.fence(zombie.address, "it was silent for too long")
            await wait_until(lambda: told)
            assert told == ["its node is gone: it was silent for too long"]
            for _ in range(3):
                with pytest.raises(ActorGone):
                    await oracle.ask(Text(text="let me in"), deadline_s=5)
            with pytest.raises(ActorGone, match="shut out"):
                await ref.ask(Text(text="x"), deadline_s=5)
        async with Node(name="new", address=zombie.address, secret=SECRET) as successor:
            oracle = successor.ref(f"{controller.address}/oracle")
            assert await oracle.ask(Text(text="x"), deadline_s=5) == Text(text="X")


async def test_a_wildcard_address_needs_a_host_to_advertise() -> None:
    with pytest.raises(ConfigError, match="nobody can reach it"):
        async with Node(name="n", secret=SECRET, address="tcp://0.0.0.0:0"):
            pass
    node = Node(name="n", secret=SECRET, address="tcp://0.0.0.0:0", advertise_host="127.0.0.1")
    async with node, make_node("tcp", "other") as other:
        assert node.address.startswith("tcp://127.0.0.1:")
        node.spawn(Oracle(), name="oracle")
        oracle = other.ref(f"{node.address}/oracle")
        assert await oracle.ask(Text(text="x"), deadline_s=5) == Text(text="X")
