"""A link against a peer that is driven by hand: late, slow, silent, lying, or mad."""

import asyncio
import contextlib
import random
from dataclasses import replace

import msgpack
import pytest

from dvrt.buffers import Region
from dvrt.errors import ConfigError, Corrupted, PeerLost, ProtocolError, TransferTimeout
from dvrt.kv.digest import Tally
from dvrt.kv.layout import Layout
from dvrt.kv.plan import Side, Worker, plan
from dvrt.kv.spans import Span
from dvrt.streaming import (
    Cache,
    Grouping,
    Setups,
    open_inflow,
    open_link,
    open_outflow,
    stream_in,
    stream_out,
)
from dvrt.streaming.contiguous import all_through
from dvrt.streaming.headers import pack, sum_of, unpack
from dvrt.streaming.incoming import accept
from dvrt.streaming.messages import (
    PROTOCOL_VERSION,
    Commit,
    Credit,
    Grant,
    Hello,
    Offer,
    Over,
    Parcel,
    Stored,
    Together,
)
from dvrt.streaming.outgoing import open_out
from dvrt.streaming.terms import outline_of, terms_of
from dvrt.wire import encode

ME = Worker(0, 0)
SIDE = Side(layers=(Span.of(0, 8),), heads=(Span.of(0, 1),), batches=((0,),))
LAYOUT = Layout.paper(layers=8, rows=1, heads=1, tokens=256, dim=32, item_bytes=4)
SETUPS = Setups(source=SIDE, target=SIDE, wire=LAYOUT)
LAYER_BYTES = LAYOUT.nbytes // 8
OFFER = Offer(
    stream="kv",
    epoch=0,
    grouping=Grouping.LAYERS,
    max_parcel_bytes=1 << 20,
    terms=terms_of(SETUPS, ME, ME),
)


class Peer:
    """The other end of a link, message by message."""

    def __init__(self, channel):
        self.channel = channel
        self.heard = []

    async def say(self, message, *regions):
        await self.channel.send(pack(message), *(Region.of(r) for r in regions), deadline_s=5)

    async def hear(self, kind=None):
        """The next message, which must be of this kind; a commit may come ahead of its parcels."""
        while isinstance(message := await self._next(), Commit) and kind is not Commit:
            self.commit = message
        assert kind is None or isinstance(message, kind), message
        return message

    async def _next(self):
        if not self.heard:
            incoming = await self.channel.receive(deadline_s=5)
            message = unpack(incoming.header)
            if incoming.sizes:
                await incoming.take(deadline_s=5)
            self.heard += message.messages if isinstance(message, Together) else (message,)
        return self.heard.pop(0)


@contextlib.asynccontextmanager
async def facing(tools, *, window_bytes=1 << 20, **options):
    """(kit, link, peer): one link of ours, and a peer that has only said hello."""
    async with tools.kits(1, **options) as [kit], tools.channels("tcp") as [(a, b)]:
        peer = Peer(b)
        opening = asyncio.create_task(open_link(a, kit, tools.SETUP, deadline_s=5))
        await peer.say(
            Hello(
                version=PROTOCOL_VERSION,
                setup=tools.SETUP,
                incarnation=0,
                window_bytes=window_bytes,
                is_verified=kit.is_verified,
            )
        )
        await peer.hear(Hello)
        link = await opening
        try:
            yield kit, link, peer
        finally:
            await link.aclose(deadline_s=0.1)


def parcel(**fields):
    usual = {"stream": "kv", "epoch": 0, "generation": 1, "step": 0, "index": 0, "offset": 0}
    return Parcel(**{**usual, "sequence": 0, "digest": 0, **fields})


def over(reason, **fields):
    usual = {"stream": "kv", "epoch": 0, "generation": 0, "is_from_sender": False}
    return Over(**{**usual, "reason": reason, **fields})


def cache_on(kit):
    return Cache(region=kit.device.alloc(LAYOUT.nbytes), layout=LAYOUT)


async def test_what_comes_late_is_counted_and_dropped_and_credited(tools):
    async with facing(tools) as (kit, link, peer):
        stream = accept(link, "kv")
        await peer.say(parcel(stream="gone", sequence=4), bytes(100))
        await peer.say(parcel(generation=99, sequence=5), bytes(100))
        assert [(await peer.hear(Credit)).sequence for _ in "ab"] == [4, 5]
        await stream.cancel()
        await peer.hear(Over)
        await peer.say(parcel(generation=stream.generation, sequence=6), bytes(100))
        assert (await peer.hear(Credit)).sequence == 6
        assert kit.counters.late_parcels == 3
        again = accept(link, "kv")
        assert again.generation > stream.generation


async def test_no_more_is_under_way_than_the_peer_allows(tools):
    window = 2 * LAYER_BYTES
    async with facing(tools, window_bytes=window) as (kit, link, peer):
        cache = cache_on(kit)
        sending = asyncio.create_task(
            stream_out(kit, "kv", SETUPS, ME, [cache], {ME: link}, Span.of(0, 256), deadline_s=9)
        )
        await peer.hear(Offer)
        await peer.say(Grant(stream="kv", epoch=0, generation=7))
        for step in range(4):
            sequences = [(await peer.hear(Parcel)).sequence for _ in "ab"]
            assert sequences == [2 * step, 2 * step + 1]
            await asyncio.sleep(0.01)
            assert kit.counters.parcels_sent == 2 * step + 2
            assert link.statistics().in_flight_bytes <= window
            for sequence in sequences:
                await peer.say(Credit(sequence=sequence))
        commit = peer.commit
        assert (commit.chunks, commit.nbytes, commit.generation) == (8, LAYOUT.nbytes, 7)
        assert not sending.done()
        await peer.say(Stored(stream="kv", epoch=0, generation=7, step=0))
        await sending
        assert (await peer.hear(Over)).reason == ""


async def test_a_step_is_one_message_there_and_one_back(tools):
    async with facing(tools) as (kit, link, peer):
        opening = asyncio.create_task(
            open_outflow(
                *(kit, "kv", SETUPS, ME, [cache_on(kit)], {ME: link}),
                grouping=Grouping.WHOLE,
                deadline_s=5,
            )
        )
        await peer.hear(Offer)
        await peer.say(Grant(stream="kv", epoch=0, generation=7))
        outflow = await opening
        shipping = asyncio.create_task(outflow.ship(0, Span.of(3, 4), deadline_s=5))
        incoming = await peer.channel.receive(deadline_s=5)
        parts = await incoming.take(deadline_s=5)
        commit, sent = unpack(incoming.header).messages
        assert (type(commit), type(sent)) == (Commit, Parcel)
        assert sum(map(len, parts)) == LAYOUT.nbytes // 256
        stored = Stored(stream="kv", epoch=0, generation=7, step=0)
        await peer.say(Together(messages=(Credit(sequence=0), stored)))
        await shipping
        outflow.close()


async def test_the_receiver_of_a_step_answers_once(tools):
    async with facing(tools, is_verified=False) as (kit, link, peer):
        cache, body = cache_on(kit), bytes(LAYOUT.nbytes // 256)
        whole = open_inflow(kit, "kv", SETUPS, ME, [cache], {ME: link})
        await peer.say(replace(OFFER, grouping=Grouping.WHOLE))
        generation = (await peer.hear(Grant)).generation
        tally = Tally()
        tally.add(0, nbytes=len(body), digest=0)
        total = tally.sum()
        commit = Commit(
            **{"stream": "kv", "epoch": 0, "generation": generation, "step": 0},
            **{"chunks": total.chunks, "nbytes": total.nbytes, "digest": total.digest},
            outline=outline_of(plan(SIDE, SIDE, Span.of(3, 4))),
        )
        together = Together(messages=(commit, parcel(generation=generation)))
        await peer.say(together, body[: len(body) // 2], body[len(body) // 2 :])
        assert [box.tokens async for box in whole.take(0, Span.of(3, 4), deadline_s=5)]
        answer = unpack((await peer.channel.receive(deadline_s=5)).header)
        assert [type(message) for message in answer.messages] == [Credit, Stored]
        whole.close()


@pytest.mark.parametrize("what", ["nothing", "a greeting", "a parcel ahead"])
async def test_what_cannot_be_said_together_ends_the_link(tools, what):
    async with facing(tools) as (_, link, peer):
        hello = Hello(version=PROTOCOL_VERSION, setup=tools.SETUP, incarnation=0, window_bytes=1)
        said = {
            "nothing": [],
            "a greeting": [hello],
            "a parcel ahead": [parcel(), over("")],
        }
        messages = [msgpack.unpackb(encode(message)) for message in said[what]]
        together = msgpack.packb(["stream.together", 1, [messages]])
        await peer.channel.send(together + sum_of(together))
        await asyncio.wait_for(link.wait_over(), 5)


@pytest.mark.parametrize("end", ["outflow", "inflow"])
async def test_a_step_that_is_proved_is_not_late(tools, monkeypatch, end):
    """The peer knows that it is proved, and may have gone: nobody would send it again."""

    async def slowly(works):
        await all_through(works)
        await asyncio.sleep(0.4)

    monkeypatch.setattr(f"dvrt.streaming.{end}.all_through", slowly)
    async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
        one, other = await asyncio.gather(
            *(open_link(c, kit, tools.SETUP, deadline_s=5) for c, kit in ((a, here), (b, there)))
        )
        out = (here, "kv", SETUPS, ME, [cache_on(here)], {ME: one}, Span.of(0, 9))
        into = (there, "kv", SETUPS, ME, [cache_on(there)], {ME: other}, Span.of(0, 9))
        limits = {"outflow": 5, "inflow": 5, end: 0.2}
        sending = asyncio.create_task(stream_out(*out, deadline_s=limits["outflow"]))
        boxes = [box async for box in stream_in(*into, deadline_s=limits["inflow"])]
        await sending
        assert len(boxes) == 8
        await asyncio.gather(one.aclose(), other.aclose())


async def test_a_peer_that_never_reads_costs_a_deadline_and_nothing_else(tools):
    async with facing(tools, window_bytes=LAYER_BYTES) as (kit, link, peer):
        cache = cache_on(kit)
        sending = asyncio.create_task(
            stream_out(kit, "kv", SETUPS, ME, [cache], {ME: link}, Span.of(0, 256), deadline_s=0.1)
        )
        await peer.hear(Offer)
        await peer.say(Grant(stream="kv", epoch=0, generation=1))
        with pytest.raises(TransferTimeout):
            await sending
        assert kit.counters.parcels_sent == 1
        assert kit.staging.statistics().leased_bytes == 0
        await peer.hear(Parcel)
        assert "deadline" in (await peer.hear(Over)).reason


async def test_a_refusal_reaches_the_sender_as_corruption(tools):
    async with facing(tools) as (_, link, peer):
        opening = asyncio.create_task(open_out(link, "kv", deadline_s=5))
        await peer.hear(Offer)
        await peer.say(Grant(stream="kv", epoch=0, generation=3))
        stream = await opening
        stream.ship(0, 0, 0, [Region.of(bytearray(10))])
        stored = stream.commit(0)
        await peer.say(over("digest", generation=3, is_corrupted=True))
        with pytest.raises(Corrupted, match="digest"):
            await stored
        with pytest.raises(Corrupted):
            stream.ship(0, 1, 0, [Region.of(bytearray(10))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": 7}, "chunks"),
        ({"nbytes": 1}, "nbytes"),
        ({"digest": 1}, "digest"),
    ],
)
async def test_a_commit_record_that_lies_is_found_out(tools, change, message):
    layout = Layout.head_major(layers=1, rows=1, heads=1, tokens=4, dim=4, item_bytes=4)
    side = Side(layers=(Span.of(0, 1),), heads=(Span.of(0, 1),), batches=((0,),))
    setups = Setups(source=side, target=side, wire=layout)
    async with facing(tools, is_verified=False) as (kit, link, peer):
        cache = Cache(region=kit.device.alloc(layout.nbytes), layout=layout)
        boxes = stream_in(kit, "kv", setups, ME, [cache], {ME: link}, Span.of(0, 4), deadline_s=5)
        arrived = asyncio.create_task(anext(boxes))
        await asyncio.sleep(0)
        await peer.say(replace(OFFER, terms=terms_of(setups, ME, ME)))
        grant = await peer.hear(Grant)
        await peer.say(parcel(generation=grant.generation), bytes(layout.nbytes))
        assert (await arrived).layers == Span.of(0, 1)
        outline = outline_of(plan(side, side, Span.of(0, 4)))
        truth = {"chunks": 1, "nbytes": layout.nbytes, "digest": 0, "outline": outline}
        commit = Commit(
            stream="kv", epoch=0, generation=grant.generation, step=0, **{**truth, **change}
        )
        await peer.say(commit)
        with pytest.raises(Corrupted, match=message):
            await anext(boxes)
        await peer.hear(Credit)
        assert (await peer.hear(Over)).is_corrupted


@pytest.mark.parametrize(
    "fields", [{"index": 9}, {"digest": 5}, {"offset": 4}, {"offset": 1 << 60}]
)
async def test_a_parcel_that_belongs_nowhere_is_refused(tools, fields):
    async with facing(tools, is_verified=False) as (kit, link, peer):
        cache = cache_on(kit)
        boxes = stream_in(kit, "kv", SETUPS, ME, [cache], {ME: link}, Span.of(0, 256), deadline_s=5)
        arrived = asyncio.create_task(anext(boxes))
        await asyncio.sleep(0)
        await peer.say(OFFER)
        grant = await peer.hear(Grant)
        size = LAYER_BYTES // (2 if "offset" in fields else 1)
        await peer.say(parcel(generation=grant.generation, **fields), bytes(size))
        with pytest.raises(Corrupted):
            await arrived
        link.ensure_open()


async def test_a_parcel_without_a_digest_is_refused_where_digests_are_on(tools):
    """Whatever the peer said when it greeted."""
    async with facing(tools) as (kit, link, peer):
        boxes = stream_in(
            *(kit, "kv", SETUPS, ME, [cache_on(kit)], {ME: link}, Span.of(0, 256)), deadline_s=5
        )
        arrived = asyncio.create_task(anext(boxes))
        await peer.say(OFFER)
        grant = await peer.hear(Grant)
        await peer.say(parcel(generation=grant.generation), bytes(LAYER_BYTES))
        with pytest.raises(Corrupted, match="digest of parcel 0"):
            await arrived
        link.ensure_open()


@pytest.mark.parametrize(
    "what",
    ["unknown credit", "hello again", "regions", "oversized", "rubbish", "no checksum", "not ours"],
)
async def test_a_peer_that_breaks_the_rules_ends_the_link(tools, what):
    async with facing(tools, staging_bytes=1 << 20) as (_, link, peer):
        waiting = asyncio.create_task(open_out(link, "kv", deadline_s=5))
        await peer.hear(Offer)
        if what == "unknown credit":
            await peer.say(Credit(sequence=77))
        elif what == "hello again":
            await peer.say(Hello(version=1, setup=tools.SETUP, incarnation=0, window_bytes=1))
        elif what == "regions":
            await peer.say(Credit(sequence=0), b"x")
        elif what == "oversized":
            await peer.say(parcel(), bytes(2 << 20))
        elif what == "rubbish":
            rubbish = random.Random(3).randbytes(300)
            await peer.channel.send(rubbish + sum_of(rubbish))
        elif what == "no checksum":
            await peer.channel.send(encode(Credit(sequence=0)))
        else:
            await peer.say(Span.of(1, 2))
        with pytest.raises((PeerLost, Corrupted)):
            await waiting
        await asyncio.wait_for(link.wait_over(), 5)
        with pytest.raises(PeerLost):
            link.ensure_open()


async def test_one_name_is_one_stream_at_a_time(tools):
    async with facing(tools) as (_, link, peer):
        accept(link, "kv")
        with pytest.raises(ProtocolError, match="already expected"):
            accept(link, "kv")
        accept(link, "kv", epoch=1)
        opening = asyncio.create_task(open_out(link, "kv", deadline_s=5))
        await peer.hear(Offer)
        with pytest.raises(ProtocolError, match="already on its way"):
            await open_out(link, "kv", deadline_s=5)
        opening.cancel()
        await asyncio.wait([opening])


async def test_offers_that_nobody_expects_can_be_asked_for(tools):
    async with facing(tools) as (_, link, peer):
        asking = asyncio.create_task(link.next_offer())
        await asyncio.sleep(0)
        assert not asking.done()
        await peer.say(OFFER)
        assert await asking == OFFER
        accept(link, OFFER.stream)
        assert (await peer.hear(Grant)).stream == OFFER.stream
        asking = asyncio.create_task(link.next_offer())
        await peer.channel.aclose()
        assert await asking is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 99}, f"protocol version differs: {PROTOCOL_VERSION} here, 99 there"),
        ({"window_bytes": 0}, "window_bytes is 0 there"),
    ],
)
async def test_ends_that_cannot_talk_say_why(tools, fields, message):
    async with tools.kits(1) as [kit], tools.channels("local") as [(a, b)]:
        peer = Peer(b)
        opening = asyncio.create_task(open_link(a, kit, tools.SETUP, deadline_s=5))
        hello = {
            "version": PROTOCOL_VERSION,
            "setup": tools.SETUP,
            "incarnation": 0,
            "window_bytes": 1,
        }
        await peer.say(Hello(**{**hello, **fields}))
        with pytest.raises(ConfigError, match=message):
            await opening


async def test_closing_sends_what_was_submitted(tools):
    async with facing(tools) as (_, link, peer):
        opening = asyncio.create_task(open_out(link, "kv", deadline_s=5))
        await peer.hear(Offer)
        await peer.say(Grant(stream="kv", epoch=0, generation=1))
        stream = await opening
        sent = [stream.ship(0, i, 0, [Region.of(bytearray(50_000))]).sent for i in range(5)]
        closing = asyncio.create_task(link.aclose())
        for _ in range(5):
            await peer.hear(Parcel)
        await closing
        assert all(one.exception() is None for one in sent)
        with pytest.raises(PeerLost):
            await peer.hear()


@pytest.mark.parametrize("how", ["closed", "aborted"])
async def test_a_link_that_nobody_wants_any_more_ends_at_once(tools, how):
    """Before its task took its first step, too."""
    async with tools.kits() as (here, there), tools.channels("tcp") as [(a, b)]:
        one, other = await asyncio.gather(
            open_link(a, here, tools.SETUP, deadline_s=5),
            open_link(b, there, tools.SETUP, deadline_s=5),
        )
        for link in (one, other):
            if how == "aborted":
                link.abort()
                await asyncio.wait_for(link.wait_over(), 5)
            else:
                await asyncio.wait_for(link.aclose(), 5)
            with pytest.raises(PeerLost):
                link.ensure_open()
