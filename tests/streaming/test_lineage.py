"""A link that breaks is opened again; streams go on from what was proved."""

import asyncio

import pytest

from dvrt.buffers import Region
from dvrt.errors import ConnectFailed, Corrupted, PeerLost, TransferTimeout, TransportError
from dvrt.kv.plan import Side, uniform_batches
from dvrt.kv.spans import Span
from dvrt.streaming import Behind, Lineage, Setups, open_inflow, open_link, open_outflow
from dvrt.streaming.behind import MAX_TRIES
from dvrt.streaming.headers import pack, unpack
from dvrt.streaming.incoming import accept
from dvrt.streaming.link import GENERATION_BITS
from dvrt.streaming.messages import MAX_INCARNATION, PROTOCOL_VERSION, Credit, Hello, Parcel
from dvrt.streaming.outgoing import open_out
from dvrt.transport import connect
from dvrt.transport.faults import FaultKind
from tests.streaming.relay import ADDRESSES, ME, STEPS, pair, token

BREAKING = {FaultKind.CUT: 0.03, FaultKind.FLIP: 0.02}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", ADDRESSES)
async def test_a_link_that_breaks_again_and_again(tools, scheme, seed, loop_kind):
    async with pair(tools, scheme, BREAKING, seed) as made:
        _, inflow = await asyncio.gather(made.send(), made.receive())
        side = made.setups.source
        tools.ensure_filled(made.target[0], side, ME, 0, Span.of(0, STEPS))
        assert made.dials > 1
        assert made.lineage.incarnation == made.host.incarnation == made.dials
        assert inflow._streams[ME].proved == STEPS - 1
        # what the peer had acknowledged was not sent again: at most two steps a break
        assert made.there.counters.parcels_received <= STEPS + 2 * made.dials
        await inflow.cancel()


async def test_a_step_whose_proof_was_lost_is_not_sent_again(tools, monkeypatch):
    """The peer has it: only the sender does not know."""
    async with pair(tools, "local") as made:
        outflow, inflow = await settle(made)
        link = inflow._streams[ME]._link
        say = link.say
        monkeypatch.setattr(link, "say", lambda m: say(m) if "Stored" not in repr(m) else None)
        shipping = asyncio.create_task(outflow.ship(0, token(0), deadline_s=5))
        await take(inflow, 0)
        link.abort()
        with pytest.raises(PeerLost):
            await shipping
        sent = made.here.counters.parcels_sent
        renewed = await made.renew()
        await asyncio.gather(
            outflow.resume(renewed, deadline_s=5), inflow.resume({ME: await made.links.get()})
        )
        await outflow.ship(0, token(0), deadline_s=5)
        assert made.here.counters.parcels_sent == sent
        await asyncio.gather(outflow.ship(1, token(1), deadline_s=5), take(inflow, 1))
        assert made.here.counters.parcels_sent == sent + 1
        await asyncio.gather(outflow.cancel(), inflow.cancel())


async def settle(made):
    links = await made.renew()
    inflow = made.expect(await made.links.get())
    return await made.open(links), inflow


async def take(inflow, step):
    async for _ in inflow.take(step, token(step), deadline_s=5):
        pass


async def test_without_progress_it_ends(tools):
    """A step that is lost again and again is an error in the end, not a loop."""
    async with pair(tools, "local") as made:
        outflow, inflow = await settle(made)
        tries = 0

        async def renew(lost):
            nonlocal tries
            tries += 1
            assert lost == (ME,)
            links = await made.renew()
            await inflow.resume({ME: await made.links.get()})
            return links

        behind = Behind(outflow, limit=1, step_s=0.05, renew=renew)
        await behind.push(0, token(0))
        with pytest.raises((TransferTimeout, PeerLost), match="step 0"):
            await behind.drain(deadline_s=20)
        assert tries == MAX_TRIES - 1
        await behind.aclose()
        await asyncio.gather(outflow.cancel(), inflow.cancel())


async def test_what_renewing_raises_ends_it(tools):
    async with pair(tools, "local") as made:
        outflow, inflow = await settle(made)

        async def renew(lost):
            raise ConnectFailed("nobody there")

        behind = Behind(outflow, limit=1, step_s=5, renew=renew)
        inflow._streams[ME]._link.abort()
        await behind.push(0, token(0))
        with pytest.raises(ConnectFailed):
            await behind.drain(deadline_s=5)
        await behind.aclose()
        await asyncio.gather(outflow.cancel(), inflow.cancel())


async def test_an_incarnation_that_is_not_new_is_refused_and_the_link_lives_on(tools):
    async with pair(tools, "tcp") as made:
        outflow, inflow = await settle(made)
        late = Lineage(made.here, tools.SETUP)
        channel = await connect(made.address, deadline_s=5)
        with pytest.raises((Corrupted, PeerLost)):
            await late.dial(channel, deadline_s=5)
        assert made.links.empty()
        assert made.host.incarnation == 1
        await asyncio.gather(outflow.ship(0, token(0), deadline_s=5), take(inflow, 0))
        stand_in = Lineage(made.here, tools.SETUP, incarnation=7)
        channel = await connect(made.address, deadline_s=5)
        async with await stand_in.dial(channel, deadline_s=5):
            await made.links.get()
            assert made.host.incarnation == stand_in.incarnation == 8
            with pytest.raises(PeerLost):
                await outflow.ship(1, token(1), deadline_s=5)
        await asyncio.gather(outflow.cancel(), inflow.cancel())


async def test_the_link_before_is_over_when_the_next_begins(tools):
    """A connection that only seems to live is taken over; its streams fail, its memory is free."""
    async with pair(tools, "tcp") as made:
        outflow, inflow = await settle(made)
        before = outflow._streams[ME]._link
        waiting = asyncio.create_task(take(inflow, 0))
        await asyncio.sleep(0)
        links = await made.renew()
        assert before._over.is_set()
        with pytest.raises(PeerLost):
            await waiting
        assert inflow.lost == (ME,)
        await asyncio.gather(
            outflow.resume(links, deadline_s=5), inflow.resume({ME: await made.links.get()})
        )
        await asyncio.gather(outflow.ship(0, token(0), deadline_s=5), take(inflow, 0))
        await asyncio.gather(outflow.cancel(), inflow.cancel())


async def test_parcels_of_an_incarnation_before_are_counted_and_dropped(tools):
    async with tools.kits(1) as [kit], tools.channels("tcp") as [(a, b)]:
        opening = asyncio.create_task(open_link(a, kit, tools.SETUP, deadline_s=5, incarnation=4))
        hello = Hello(
            version=PROTOCOL_VERSION, setup=tools.SETUP, incarnation=5, window_bytes=1 << 20
        )
        await b.send(pack(hello))
        await b.receive()
        link = await opening
        assert link.incarnation == 5
        stream = accept(link, "log")
        assert stream.generation == (5 << GENERATION_BITS) + 1
        late = {"stream": "log", "epoch": 0, "step": 0, "index": 0, "offset": 0, "digest": 0}
        for number, incarnation in enumerate((0, 4)):
            generation = (incarnation << GENERATION_BITS) + 1
            parcel = Parcel(**late, generation=generation, sequence=number)
            await b.send(pack(parcel), Region.of(bytearray(100)))
            assert unpack((await b.receive(deadline_s=5)).header) == Credit(sequence=number)
        assert kit.counters.late_parcels == 2
        await stream.cancel()
        await link.aclose()


async def test_one_peer_of_two_is_lost_and_the_other_goes_on(tools):
    """Only what broke is mended: the peer that has the step is sent nothing again."""
    source = tools.one_sided()
    target = Side(
        layers=(Span.of(0, 2), Span.of(2, 4)),
        heads=(Span.of(0, 2),),
        batches=uniform_batches([0, 1, 2], 3),
    )
    workers = target.workers
    async with tools.kits() as (here, there), tools.channels("tcp", 3) as channels:
        links = [
            await asyncio.gather(
                open_link(a, here, tools.SETUP, deadline_s=5),
                open_link(b, there, tools.SETUP, deadline_s=5),
            )
            for a, b in channels
        ]
        caches = tools.caches(here.device, source, ME, "LCBHTD", tokens=STEPS)
        tools.fill(tools.array(caches[0]), caches[0].layout, source, ME, 0, Span.of(0, STEPS))
        theirs = {w: tools.caches(there.device, target, w, "LCBTHD", tokens=STEPS) for w in workers}
        setups = Setups(source=source, target=target, wire=theirs[workers[0]][0].layout)
        inflows = {
            w: open_inflow(there, "log", setups, w, theirs[w], {ME: links[i][1]})
            for i, w in enumerate(workers)
        }
        ours = {w: links[i][0] for i, w in enumerate(workers)}
        outflow = await open_outflow(here, "log", setups, ME, caches, ours, deadline_s=5)
        channels[1][1].abort()
        healthy, broken = (asyncio.create_task(take(inflows[w], 0)) for w in workers)
        with pytest.raises(PeerLost):
            await outflow.ship(0, token(0), deadline_s=5)
        await healthy
        with pytest.raises(TransportError):
            await broken
        assert outflow.lost == (workers[1],)
        sent = here.counters.bytes_sent
        one, other = links[2]
        await asyncio.gather(
            outflow.resume({workers[1]: one}, deadline_s=5),
            inflows[workers[1]].resume({ME: other}),
        )
        await asyncio.gather(outflow.ship(0, token(0), deadline_s=5), take(inflows[workers[1]], 0))
        assert here.counters.bytes_sent - sent == theirs[workers[1]][0].layout.entry_bytes * 3
        for worker in workers:
            tools.ensure_filled(theirs[worker][0], target, worker, 0, token(0))
            await inflows[worker].cancel()
        await outflow.cancel()
        await asyncio.gather(*(link.aclose() for both in links for link in both))


def hello_of(tools, incarnation, monkeypatch):
    """A greeting that no honest end would send."""
    with monkeypatch.context() as patch:
        patch.setattr("dvrt.streaming.messages.ensure_incarnation", lambda number: None)
        return pack(
            Hello(
                version=PROTOCOL_VERSION,
                setup=tools.SETUP,
                incarnation=incarnation,
                window_bytes=1 << 20,
            )
        )


@pytest.mark.parametrize("incarnation", [1 << 32, 1 << 60, -1])
async def test_an_incarnation_out_of_bounds_takes_nothing_over(tools, monkeypatch, incarnation):
    """Generations above it would not fit a message, and no later link would be a newer one."""
    header = hello_of(tools, incarnation, monkeypatch)
    async with pair(tools, "tcp") as made:
        outflow, inflow = await settle(made)
        channel = await connect(made.address, deadline_s=5)
        await channel.send(header)
        with pytest.raises(TransportError):
            await channel.receive(deadline_s=5)
            await channel.receive(deadline_s=5)
        channel.abort()
        assert made.links.empty()
        assert made.host.incarnation == 1
        await asyncio.gather(outflow.ship(0, token(0), deadline_s=5), take(inflow, 0))
        await asyncio.gather(outflow.cancel(), inflow.cancel())


async def test_the_last_incarnation_is_the_last(tools):
    for number in (-1, MAX_INCARNATION + 1):
        with pytest.raises(ValueError, match="incarnation"):
            Lineage(None, tools.SETUP, incarnation=number)
    async with tools.kits() as (here, there), tools.channels("local", 2) as [(a, b), (c, _)]:
        async with (
            Lineage(here, tools.SETUP, incarnation=MAX_INCARNATION - 1) as one,
            Lineage(there, tools.SETUP) as other,
        ):
            links = await asyncio.gather(one.dial(a, deadline_s=5), other.admit(b, deadline_s=5))
            streams = [accept(link, "log") for link in links]
            assert {stream.generation >> GENERATION_BITS for stream in streams} == {MAX_INCARNATION}
            opened = await open_out(links[0], "log", deadline_s=5)
            assert opened.generation == streams[1].generation
            promised = here._promised_bytes
            with pytest.raises(ValueError, match="incarnation"):
                await one.dial(c, deadline_s=5)
            assert here._promised_bytes == promised
            await opened.cancel()
            for stream in streams:
                await stream.cancel()
