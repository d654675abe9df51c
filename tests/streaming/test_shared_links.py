"""Streams of both directions, of one name, of several links: none pays for another's end."""

import asyncio

import pytest

from dvrt.buffers import Region
from dvrt.cuda.fences import all_done
from dvrt.errors import DvrtError, PeerLost, ProtocolError
from dvrt.kv.layout import Layout
from dvrt.kv.plan import Side, Worker
from dvrt.kv.spans import Span
from dvrt.streaming import Cache, Kit, LayerGate, Mode, Setups, open_link, stream_in, stream_out
from dvrt.streaming.incoming import accept
from dvrt.streaming.link import MAX_SAID
from dvrt.streaming.messages import MAX_NAME, Grant, Grouping, Offer, Over
from dvrt.streaming.outgoing import open_out
from tests.streaming.test_link import facing

ME = Worker(0, 0)


async def test_the_end_of_one_direction_is_not_that_of_the_other(tools):
    async with tools.linked() as ((_, one), (_, other)):
        into_there, into_here = accept(other, "kv"), accept(one, "kv")
        there = await open_out(one, "kv", deadline_s=5)
        back = await open_out(other, "kv", deadline_s=5)
        assert there.generation == back.generation == into_here.generation
        there.close()
        async with asyncio.timeout(5):
            while not into_there.is_over:
                await asyncio.sleep(0)
        assert not back.is_broken and not into_here.is_over
        await into_here.cancel()
        async with asyncio.timeout(5):
            while not back.is_broken:
                await asyncio.sleep(0)


async def test_a_receiver_that_ends_leaves_the_peers_offer_of_that_name(tools):
    async with tools.linked() as ((_, one), (_, other)):
        wanted = accept(one, "kv")
        opening = asyncio.create_task(open_out(one, "kv", deadline_s=5))
        assert (await other.next_offer()).stream == "kv"
        await wanted.cancel()
        await asyncio.sleep(0.01)
        taken = accept(other, "kv")
        await opening
        await taken.cancel()


async def test_an_offer_that_is_withdrawn_is_not_waited_for(tools):
    async with facing(tools) as (_, link, peer):
        opening = asyncio.create_task(open_out(link, "kv", deadline_s=5))
        await peer.hear(Offer)
        opening.cancel()
        assert (await peer.hear(Over)).generation == 0  # crossed by the grant
        await peer.say(Grant(stream="kv", epoch=0, generation=7))
        withdrawn = await peer.hear(Over)
        assert (withdrawn.generation, withdrawn.is_from_sender) == (7, True)


async def test_parcels_are_cut_to_the_peers_window(tools):
    async with tools.kits(1) as [small], tools.kits(1) as [large]:
        small = Kit(small.device, staging_bytes=1 << 20)
        async with tools.channels("local") as [(a, b)]:
            one, other = await asyncio.gather(
                open_link(a, large, tools.SETUP, deadline_s=5),
                open_link(b, small, tools.SETUP, deadline_s=5),
            )
            taken = accept(other, "kv")
            stream = await open_out(one, "kv", deadline_s=5)
            assert stream.offer.max_parcel_bytes == one.peer.window_bytes < large.max_parcel_bytes
            await taken.cancel()
            await asyncio.gather(one.aclose(), other.aclose())
        await small.aclose()


async def test_what_nobody_takes_fills_its_own_links_share(tools):
    async with tools.kits(1) as [here], tools.kits(1) as [base]:
        there = Kit(base.device, staging_bytes=8 << 20)
        async with tools.channels("local", 3) as pairs:
            ends = [
                await asyncio.gather(
                    open_link(a, here, tools.SETUP, deadline_s=5, stall_s=0.3),
                    open_link(b, there, tools.SETUP, deadline_s=5, stall_s=0.3),
                )
                for a, b in pairs
            ]
            windows = [one.peer.window_bytes for one, _ in ends]
            assert sum(windows) <= there.landing.statistics().limit_bytes
            incoming = [accept(other, f"s{i}") for i, (_, other) in enumerate(ends)]
            outgoing = [
                await open_out(one, f"s{i}", deadline_s=5) for i, (one, _) in enumerate(ends)
            ]
            for stream in outgoing[:2]:
                for index in range(4):
                    stream.ship(0, index, 0, [Region.of(bytearray(1 << 20))])
            await asyncio.sleep(0.05)
            await asyncio.wait_for(outgoing[2].ship(0, 0, 0, [Region.of(bytearray(4096))]).sent, 5)
            await asyncio.sleep(0.5)
            for _, other in ends:
                other.ensure_open()
            for stream in (*incoming, *outgoing):
                await stream.cancel()
            for one, other in ends:
                await asyncio.gather(one.aclose(), other.aclose())
            assert there.promise(1 << 30) == there.landing.statistics().limit_bytes // 2
        await there.aclose()


async def test_a_peer_that_asks_and_does_not_read_ends_the_link(tools, monkeypatch):
    monkeypatch.setattr("dvrt.streaming.link.MAX_SAID", 50)
    assert MAX_SAID > 50
    async with facing(tools) as (_, link, peer):
        held = asyncio.Event()
        send = link._channel.send

        async def stuck(*given, **named):
            await held.wait()
            await send(*given, **named)

        link._channel.send = stuck
        with pytest.raises(PeerLost):
            for number in range(2000):
                await peer.say(
                    Offer(
                        stream=f"s{number}",
                        epoch=0,
                        grouping=Grouping.LAYERS,
                        max_parcel_bytes=1 << 20,
                    )
                )
                await asyncio.sleep(0)
        await asyncio.wait_for(link.wait_over(), 5)
        assert isinstance(link._error, ProtocolError) and "does not read" in str(link._error)


async def test_names_have_a_limit(tools):
    async with tools.linked() as ((_, one), _):
        with pytest.raises(ValueError, match="limit"):
            await open_out(one, "x" * (MAX_NAME + 1), deadline_s=5)


async def test_a_receive_that_fails_in_place_is_over_when_its_channel_is_quiet(tools):
    """As with UCX: memory is in use after a failure, until ``quiet`` returns."""
    layout = Layout.token_major(layers=2, rows=1, heads=2, tokens=20_000, dim=8, item_bytes=2)
    side = Side(layers=(Span.of(0, 2),), heads=(Span.of(0, 2),), batches=((0,),))
    setups = Setups(source=side, target=side, wire=layout)
    tokens = Span.of(0, 20_000)
    async with tools.linked() as ((here, one), (there, other)):
        filling, fails, is_quiet = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def fill(regions, until):
            filling.set()
            await fails.wait()
            raise PeerLost("it died in the middle")

        quiet = other._channel.quiet
        other._channel._fill, other._channel.quiet = fill, is_quiet.wait
        caches = [Cache(region=Region.of(bytearray(layout.nbytes)), layout=layout) for _ in "ab"]

        async def take():
            into = (there, "kv", setups, ME, caches[1:], {ME: other}, tokens)
            async for _ in stream_in(*into, deadline_s=0.1):
                pass

        out = stream_out(here, "kv", setups, ME, caches[:1], {ME: one}, tokens, deadline_s=5)
        sending, taking = asyncio.create_task(out), asyncio.create_task(take())
        await filling.wait()
        await asyncio.sleep(0.2)
        fails.set()
        await asyncio.sleep(0.05)
        assert not taking.done(), "its memory was given back while the channel could write there"
        is_quiet.set()
        for task in (taking, sending):
            with pytest.raises(DvrtError):
                await asyncio.wait_for(task, 5)
        other._channel.quiet = quiet


async def test_a_layer_that_failed_is_not_shipped(tools):
    async with tools.kits(1) as [kit]:
        gate = LayerGate()

        def fails():
            raise ValueError("layer 0 was not computed")

        failing = asyncio.create_task(kit.device.run(fails))
        await asyncio.sleep(0)
        first = kit.device.fence()
        with pytest.raises(ValueError):
            await failing
        await kit.device.run(lambda: None)
        gate.open(0, first)
        gate.open(1, kit.device.fence())
        await asyncio.sleep(0.01)
        fences = await gate.wait(0)
        assert first in fences
        with pytest.raises(ValueError, match="not computed"):
            await all_done(fences)


@pytest.mark.parametrize("mode", list(Mode))
async def test_staging_on_the_wire_is_nobody_elses(tools, mode):
    """Cancelled while a piece is sent: its staging comes back when nothing reads it any more."""
    layout = Layout.head_major(layers=1, rows=1, heads=4, tokens=64, dim=8, item_bytes=4)
    side = Side(layers=(Span.of(0, 1),), heads=(Span.of(0, 4),), batches=((0,),))
    setups = Setups(source=side, target=side, wire=layout)
    async with tools.linked() as ((here, one), (_, other)):
        expected = accept(other, "kv")
        sending, goes_on = asyncio.Event(), asyncio.Event()
        send = one._channel.send

        async def slow(header, *regions, **named):
            if regions:
                sending.set()
                await goes_on.wait()
            await send(header, *regions, **named)

        one._channel.send = slow
        cache = Cache(region=here.device.alloc(layout.nbytes), layout=layout)
        tokens = Span.of(0, 32)
        out = stream_out(
            here, "kv", setups, ME, [cache], {ME: one}, tokens, deadline_s=5, mode=mode
        )
        task = asyncio.create_task(out)
        await sending.wait()
        leased = here.staging.statistics().leased_bytes
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        assert here.staging.statistics().leased_bytes == leased
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert here.staging.statistics().leased_bytes == 0
        await expected.cancel()
