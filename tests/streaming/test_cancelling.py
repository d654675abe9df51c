"""Cancelling: when it returns, nobody touches the memory; what comes later is counted, dropped."""

import asyncio
import contextlib
import random

import numpy as np
import pytest

from dvrt.buffers import Region
from dvrt.cuda.pinned import Staging
from dvrt.errors import DvrtError, PeerLost
from dvrt.kv.layout import Layout
from dvrt.kv.plan import Side, Worker
from dvrt.kv.spans import Span
from dvrt.streaming import Cache, Kit, Setups, open_link, stream_in, stream_out
from dvrt.streaming.incoming import InStream
from dvrt.transport.base import Channel, Incoming

ME = Worker(0, 0)
SIDE = Side(layers=(Span.of(0, 2),), heads=(Span.of(0, 1),), batches=((0,),))
# Each layer's keys (and values) are one run of 128 KiB, so that parcels are received in place.
LAYOUT = Layout.head_major(layers=2, rows=1, heads=1, tokens=1024, dim=32, item_bytes=4)
SETUPS = Setups(source=SIDE, target=SIDE, wire=LAYOUT)
TOKENS = Span.of(0, 1024)


class SlowIncoming(Incoming):
    def __init__(self, inner, channel):
        self.header, self.sizes = inner.header, inner.sizes
        self._inner, self._channel = inner, channel

    async def into(self, *regions, deadline_s=None):
        """Receive aside, then write piece by piece, going on after a cancellation as RDMA does."""
        buffers = [bytearray(size) for size in self.sizes]
        await self._inner.into(*(Region.of(b) for b in buffers))
        writing = asyncio.ensure_future(self._channel.write(buffers, regions))
        self._channel.writing.add(writing)
        writing.add_done_callback(self._channel.writing.discard)
        await asyncio.shield(writing)


class SlowChannel(Channel):
    """Writes received bytes slowly, and not only while somebody waits for them."""

    def __init__(self, inner):
        self._inner = inner
        self.writing = set()

    async def write(self, buffers, regions):
        for buffer, region in zip(buffers, regions, strict=True):
            view = region.view()
            for start in range(0, len(view), 16 << 10):
                await asyncio.sleep(0)
                view[start : start + (16 << 10)] = buffer[start : start + (16 << 10)]

    async def send(self, header, *regions, deadline_s=None):
        await self._inner.send(header, *regions, deadline_s=deadline_s)

    async def receive(self, *, deadline_s=None):
        return SlowIncoming(await self._inner.receive(deadline_s=deadline_s), self)

    async def aclose(self):
        await self._inner.aclose()

    def abort(self):
        self._inner.abort()

    async def quiet(self):
        if self.writing:
            await asyncio.wait(self.writing)
        await self._inner.quiet()

    def statistics(self):
        return self._inner.statistics()


@contextlib.asynccontextmanager
async def ends(tools, scheme, *, is_slow=True):
    async with tools.kits() as (here, there), tools.channels(scheme) as [(a, b)]:
        one, other = await asyncio.gather(
            open_link(a, here, tools.SETUP, deadline_s=5),
            open_link(SlowChannel(b) if is_slow else b, there, tools.SETUP, deadline_s=5),
        )
        source, target = (
            Cache(region=kit.device.alloc(LAYOUT.nbytes), layout=LAYOUT) for kit in (here, there)
        )
        source.region.view()[:] = b"\x11" * LAYOUT.nbytes
        try:
            yield (here, one, source), (there, other, target)
        finally:
            await asyncio.gather(one.aclose(), other.aclose())


async def receive(there, link, target, name):
    boxes = stream_in(there, name, SETUPS, ME, [target], {ME: link}, TOKENS, deadline_s=10)
    async with contextlib.aclosing(boxes):
        async for _ in boxes:
            pass


async def send(here, link, source, name):
    with contextlib.suppress(DvrtError):
        await stream_out(here, name, SETUPS, ME, [source], {ME: link}, TOKENS, deadline_s=10)


async def cancel_many(sender, receiver, n, seed):
    """Cancel receivers at random moments, reuse the slot at once; how many late writes it saw."""
    (here, one, source), (there, other, target) = sender, receiver
    rng, late = random.Random(seed), 0
    memory = np.frombuffer(target.region.view(), np.uint8)
    for round_ in range(n):
        memory[:] = 0
        name = f"kv{round_}"
        sending = asyncio.create_task(send(here, one, source, name))
        receiving = asyncio.create_task(receive(there, other, target, name))
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
        if receiving.cancelled():
            memory[:] = 0xAB
            for _ in range(rng.randrange(40)):
                await asyncio.sleep(0)
            late += int((memory != 0xAB).any())
            sending.cancel()  # it may wait for a receiver that was gone before it was there
        else:
            assert (memory == 0x11).all()
        await asyncio.wait([sending])
    return late


@pytest.mark.parametrize("scheme", ["local", "tcp", "shm"])
async def test_no_late_write_lands_in_memory_that_is_used_again(tools, scheme):
    async with ends(tools, scheme) as (sender, receiver):
        assert await cancel_many(sender, receiver, 1000, seed=1) == 0
        await asyncio.gather(send(*sender, "last"), receive(*receiver, "last"))
        assert bytes(receiver[2].region.view()[:4]) == b"\x11" * 4


async def test_the_same_finds_late_writes_where_cancelling_does_not_wait(tools, monkeypatch):
    """The test above can fail: without the wait, memory is written after it was given away."""

    async def hasty(self, reason="cancelled", *, grace_s=5.0):
        self._link.forget(self)
        self.fail(PeerLost("cancelled"))
        for queue in self._queues.values():
            while queue:
                self._done_with(queue.popleft())

    monkeypatch.setattr(InStream, "cancel", hasty)
    async with ends(tools, "local") as (sender, receiver):
        assert await cancel_many(sender, receiver, 100, seed=1) > 0


async def writes_into_leased_staging(tools, rounds):
    """Abort links while staging is being written, lease staging at once; how often it changed."""
    layout = Layout.paper(layers=2, rows=1, heads=1, tokens=1024, dim=32, item_bytes=4)
    late = 0
    async with tools.kits() as (here, there), tools.channels("local", rounds) as pairs:
        source, target = (
            Cache(region=kit.device.alloc(layout.nbytes), layout=layout) for kit in (here, there)
        )
        for number, (a, b) in enumerate(pairs):
            slow = SlowChannel(b)
            one, other = await asyncio.gather(
                open_link(a, here, tools.SETUP, deadline_s=5),
                open_link(slow, there, tools.SETUP, deadline_s=5),
            )
            sending = asyncio.create_task(send(here, one, source, "kv"))
            receiving = asyncio.create_task(receive(there, other, target, "kv"))
            while not slow.writing:
                await asyncio.sleep(0)
            other.abort()
            for _ in range(3 + number % 4):
                await asyncio.sleep(0)
            with there.landing.lease_nowait(256 << 10) as mine:
                memory = np.frombuffer(mine.region.view(), np.uint8)
                memory[:] = 0xAB
                await slow.quiet()
                late += int((memory != 0xAB).any())
                await asyncio.gather(one.wait_over(), other.wait_over())
            await asyncio.wait([sending, receiving])
            assert isinstance(receiving.exception(), DvrtError)
    return late


async def test_staging_that_is_being_written_is_leased_to_nobody(tools):
    assert await writes_into_leased_staging(tools, 20) == 0


async def test_the_same_finds_late_writes_without_quarantine(tools, monkeypatch):
    """The test above can fail: staging that is given back at once is written by two."""
    monkeypatch.setattr(Staging, "quarantine", Staging.release)
    monkeypatch.setattr(Staging, "settle", lambda staging: None)
    assert await writes_into_leased_staging(tools, 20) > 0


async def test_a_cancelled_sender_reads_its_memory_no_more(tools):
    async with ends(tools, "tcp") as (sender, receiver):
        here, one, source = sender
        receiving = asyncio.create_task(receive(*receiver, "kv"))
        sending = asyncio.create_task(
            stream_out(here, "kv", SETUPS, ME, [source], {ME: one}, TOKENS, deadline_s=10)
        )
        while not here.counters.parcels_sent:
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not one._outbox.has_parcels
        source.region.view()[:] = b"\x22" * LAYOUT.nbytes
        await asyncio.wait([receiving])
        memory = np.frombuffer(receiver[2].region.view(), np.uint8)
        assert not (memory == 0x22).any()


async def test_aborting_a_link_gives_all_staging_back(tools):
    async with tools.kits() as (here, there), tools.channels("tcp") as [(a, b)]:
        one, other = await asyncio.gather(
            open_link(a, here, tools.SETUP, deadline_s=5),
            open_link(b, there, tools.SETUP, deadline_s=5),
        )
        paper = Layout.paper(layers=2, rows=1, heads=1, tokens=1024, dim=32, item_bytes=4)
        caches = [
            Cache(region=kit.device.alloc(paper.nbytes), layout=paper) for kit in (here, there)
        ]
        for attempt in range(20):
            sending = asyncio.create_task(send(here, one, caches[0], f"kv{attempt}"))
            receiving = asyncio.create_task(receive(there, other, caches[1], f"kv{attempt}"))
            for _ in range(attempt % 19):
                await asyncio.sleep(0)
            if attempt == 19:
                one.abort()
            await asyncio.wait([sending, receiving])
            assert attempt == 19 or receiving.exception() is None
        await asyncio.gather(one.wait_over(), other.wait_over())
        assert isinstance(receiving.exception(), DvrtError)
        with pytest.raises(PeerLost):
            one.ensure_open()


def test_a_kit_divides_its_staging():
    class Device:
        name = "none"
        alloc_host = free = staticmethod(lambda _: None)

    kit = Kit(Device(), staging_bytes=1 << 20)
    limits = [pool.statistics().limit_bytes for pool in (kit.staging, kit.landing)]
    assert limits == [1 << 19, 1 << 19]
    assert kit.max_parcel_bytes == 1 << 17
