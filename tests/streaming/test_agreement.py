"""Two ends that mean different things by the same bytes: refused, and what differs is named."""

import asyncio
import contextlib
import dataclasses

import numpy as np
import pytest

from dvrt.buffers import Region
from dvrt.errors import ConfigError, Corrupted
from dvrt.kv.layout import Layout
from dvrt.kv.plan import Side, Worker, plan
from dvrt.kv.regions import Box
from dvrt.kv.spans import Span, split_evenly
from dvrt.streaming import (
    Batch,
    Cache,
    Setups,
    Spot,
    fetch,
    flush,
    gather,
    open_inflow,
    open_link,
    open_outflow,
    scatter,
    stream_in,
    stream_out,
)
from dvrt.streaming.terms import outline_of

TOKENS = 8
WHOLE = Span.of(0, TOKENS)
SIZES = {"layers": 4, "rows": 2, "heads": 2, "tokens": TOKENS, "dim": 4, "item_bytes": 4}
PAPER, TOKEN_MAJOR = Layout.paper(**SIZES), Layout.token_major(**SIZES)
BOX = Box(layers=Span.of(0, 4), rows=(0, 1), heads=Span.of(0, 2), tokens=Span.of(0, 3))


def setups_of(tools, *, wire=TOKEN_MAJOR, requests=(0, 1), source=None):
    side = tools.one_sided(requests=requests)
    return Setups(source=source or side, target=side, wire=wire)


async def drain(boxes):
    async with contextlib.aclosing(boxes):
        return [box async for box in boxes]


@contextlib.asynccontextmanager
async def ends(tools):
    """((kit, caches, links), ...) of a sender and a receiver in one stage each."""
    side = tools.one_sided(requests=(0, 1))
    async with tools.linked() as both:
        found = []
        for (kit, link), order in zip(both, ("LCBHTD", "LCBTHD"), strict=True):
            caches = tools.caches(kit.device, side, tools.ONE, order, tokens=TOKENS)
            found.append((kit, caches, {tools.ONE: link}))
        tools.fill(tools.array(found[0][1][0]), found[0][1][0].layout, side, tools.ONE, 0, WHOLE)
        yield found


async def streamed(tools, here, there, *, sent=WHOLE, wanted=WHOLE):
    """How both ends of a stream end that is described in these two ways."""
    async with ends(tools) as [(kit, ours, out), (peer, theirs, into)]:
        return await asyncio.gather(
            stream_out(kit, "kv", here, tools.ONE, ours, out, sent, deadline_s=1),
            drain(stream_in(peer, "kv", there, tools.ONE, theirs, into, wanted, deadline_s=1)),
            return_exceptions=True,
        )


async def test_a_stream_in_another_order_is_refused_before_it_begins(tools):
    sent, got = await streamed(
        tools, setups_of(tools, wire=PAPER), setups_of(tools, wire=TOKEN_MAJOR)
    )
    assert isinstance(sent, Corrupted)
    assert isinstance(got, Corrupted)
    assert "wire" in str(sent)
    assert "wire" in str(got)


async def test_a_stream_of_other_requests_in_the_same_rows_is_never_proved(tools):
    sent, got = await streamed(
        tools, setups_of(tools, requests=(0, 1)), setups_of(tools, requests=(1, 0))
    )
    assert isinstance(sent, Corrupted)
    assert isinstance(got, Corrupted)
    assert "requests" in str(sent)
    assert "requests" in str(got)


async def test_a_stream_of_other_positions_is_never_proved(tools):
    same = setups_of(tools)
    sent, got = await streamed(tools, same, same, sent=Span.of(0, 3), wanted=Span.of(1, 4))
    assert isinstance(sent, Corrupted)
    assert isinstance(got, Corrupted)
    assert "tokens" in str(sent)
    assert "tokens" in str(got)


async def test_rows_that_only_one_end_changed_are_found_out(tools):
    """The step that follows a change of rows at one end is refused; steps before it stand."""
    now, later = setups_of(tools, requests=(0, 1)), setups_of(tools, requests=(1, 0))
    async with ends(tools) as [(kit, ours, out), (peer, theirs, into)]:
        inflow = open_inflow(peer, "log", now, tools.ONE, theirs, into)
        outflow = await open_outflow(kit, "log", now, tools.ONE, ours, out, deadline_s=1)
        for step, changed in enumerate((None, later)):
            token = Span.of(step, step + 1)
            sent, got = await asyncio.gather(
                outflow.ship(step, token, deadline_s=1, setups=changed),
                drain(inflow.take(step, token, deadline_s=1)),
                return_exceptions=True,
            )
            assert isinstance(sent, Corrupted) == isinstance(got, Corrupted) == bool(changed)
        await asyncio.gather(outflow.cancel(), inflow.cancel())


async def test_links_that_lead_to_each_others_workers_are_found_out(tools):
    """Two stages of one shape: swapped links would put each one's layers in the other's place."""
    side = Side(layers=split_evenly(4, 2), heads=(Span.of(0, 2),), batches=((0, 1),))
    target = tools.one_sided(requests=(0, 1))
    setups = Setups(source=side, target=target, wire=TOKEN_MAJOR)
    first, second = side.workers
    async with tools.kits() as (here, there), tools.channels("local", 2) as channels:
        links = [
            await asyncio.gather(
                open_link(a, here, tools.SETUP, deadline_s=5),
                open_link(b, there, tools.SETUP, deadline_s=5),
            )
            for a, b in channels
        ]
        ours = {w: tools.caches(here.device, side, w, "LCBHTD", tokens=8) for w in side.workers}
        theirs = tools.caches(there.device, target, tools.ONE, "LCBTHD", tokens=8)
        swapped = {first: links[1][1], second: links[0][1]}
        results = await asyncio.gather(
            *(
                stream_out(
                    *(here, "kv", setups, w, ours[w], {tools.ONE: links[i][0]}, WHOLE),
                    deadline_s=1,
                )
                for i, w in enumerate(side.workers)
            ),
            drain(stream_in(there, "kv", setups, tools.ONE, theirs, swapped, WHOLE, deadline_s=1)),
            return_exceptions=True,
        )
        assert [type(error) for error in results] == [Corrupted] * 3
        assert all("source" in str(error) for error in results)
        await asyncio.gather(*(link.aclose() for both in links for link in both))


def filled(kit, layout):
    cache = Cache(region=kit.device.alloc(layout.nbytes), layout=layout)
    cache.region.view()[:] = bytes(i % 251 for i in range(layout.nbytes))
    return cache


async def moved(tools, there_box, *, wires=(None, None), layouts=(TOKEN_MAJOR, TOKEN_MAJOR)):
    """How a remote scatter and gather end that are told different things."""
    async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
        return await asyncio.gather(
            scatter(here, filled(here, layouts[0]), BOX, a, deadline_s=1, wire=wires[0]),
            gather(there, filled(there, layouts[1]), there_box, b, deadline_s=1, wire=wires[1]),
            return_exceptions=True,
        )


async def test_a_box_in_another_order_is_refused(tools):
    """Each end's default is its own layout: where these differ, one must be told."""
    _, got = await moved(tools, BOX, layouts=(PAPER, TOKEN_MAJOR))
    assert isinstance(got, Corrupted)
    assert "wire" in str(got)
    assert await moved(tools, BOX, layouts=(PAPER, TOKEN_MAJOR), wires=(TOKEN_MAJOR, None)) == [
        None,
        None,
    ]


async def test_a_box_of_another_shape_and_the_same_size_is_refused(tools):
    box = Box(layers=Span.of(0, 3), rows=(0, 1), heads=Span.of(0, 2), tokens=Span.of(0, 4))
    _, got = await moved(tools, box)
    assert isinstance(got, Corrupted)
    assert "wire" in str(got)


async def test_a_digest_is_wanted_where_digests_are_on(tools):
    """Whether data are checked is for the receiver to say, not for the sender alone."""
    async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
        here.is_verified = False
        sending = asyncio.create_task(flush(here, Region.of(bytearray(8)), a, deadline_s=1))
        with pytest.raises(Corrupted, match="digest"):
            await fetch(there, Region.of(bytearray(8)), b, deadline_s=1)
        await asyncio.wait([sending])
        sending.exception()


async def test_ends_of_which_one_checks_digests_only_do_not_link(tools):
    async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
        here.is_verified = False
        results = await asyncio.gather(
            *(open_link(c, k, tools.SETUP, deadline_s=5) for c, k in ((a, here), (b, there))),
            return_exceptions=True,
        )
        assert [type(error) for error in results] == [ConfigError, ConfigError]
        assert str(results[1]) == "is_verified differs: True here, False there"


async def test_a_batch_is_what_as_many_boxes_of_a_row_are(tools):
    """One spot is a box of one row, to the byte and by its name."""
    async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
        source, target = filled(here, PAPER), filled(there, TOKEN_MAJOR)
        batch = Batch(source, wire=TOKEN_MAJOR, layers=Span.of(0, 4), heads=Span.of(0, 2))
        box = dataclasses.replace(BOX, rows=(1,), tokens=Span.of(5, 6))
        await asyncio.gather(
            scatter(here, source, batch.at([Spot(1, 5)]), a, deadline_s=1),
            gather(there, target, box, b, deadline_s=1),
        )
        pair = dataclasses.replace(BOX, rows=(0, 1), tokens=Span.of(5, 6))
        _, got = await asyncio.gather(
            scatter(here, source, batch.at([Spot(0, 5), Spot(1, 5)]), a, deadline_s=1),
            gather(there, target, pair, b, deadline_s=1),
            return_exceptions=True,
        )
        assert isinstance(got, Corrupted)
        assert "wire" in str(got)


def named(layout, dtype):
    return dataclasses.replace(layout, dtype=dtype)


async def test_two_ends_with_elements_of_another_type_name_it(tools):
    float16, bfloat16 = (
        dataclasses.replace(tools.SETUP, dtype=name) for name in ("float16", "bfloat16")
    )
    for there_setup in (bfloat16, tools.SETUP):
        async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
            results = await asyncio.gather(
                open_link(a, here, float16, deadline_s=5),
                open_link(b, there, there_setup, deadline_s=5),
                return_exceptions=True,
            )
            if there_setup is bfloat16:
                assert [type(error) for error in results] == [ConfigError, ConfigError]
                assert str(results[0]) == "dtype differs: 'float16' here, 'bfloat16' there"
            else:  # who does not name it is not compared
                await asyncio.gather(*(link.aclose() for link in results))


async def test_a_stream_of_elements_of_another_type_is_refused(tools):
    sent, got = await streamed(
        tools,
        setups_of(tools, wire=named(TOKEN_MAJOR, "int32")),
        setups_of(tools, wire=named(TOKEN_MAJOR, "float32")),
    )
    assert isinstance(sent, Corrupted)
    assert isinstance(got, Corrupted)
    assert "dtype" in str(sent)
    assert "dtype" in str(got)


async def test_a_box_of_elements_of_another_type_is_refused(tools):
    int32, float32 = (named(TOKEN_MAJOR, name) for name in ("int32", "float32"))
    _, got = await moved(tools, BOX, layouts=(int32, float32))
    assert isinstance(got, Corrupted)
    assert "dtype" in str(got)
    assert await moved(tools, BOX, layouts=(int32, TOKEN_MAJOR)) == [None, None]
    async with tools.kits(1) as [kit]:
        cache, packed = filled(kit, int32), kit.device.alloc_host(BOX.nbytes(int32))
        with pytest.raises(ConfigError, match="dtype differs: 'int32' in the cache, 'float32' on"):
            await scatter(kit, cache, BOX, packed, deadline_s=1, wire=float32)


async def test_workers_are_named_in_the_offer(tools):
    setups = setups_of(tools)
    async with ends(tools) as [(kit, ours, out), (_, _, into)]:
        opening = asyncio.create_task(
            open_outflow(kit, "kv", setups, tools.ONE, ours, out, deadline_s=1)
        )
        offer = await into[tools.ONE].next_offer()
        assert Worker(*offer.terms.source) == Worker(*offer.terms.target) == tools.ONE
        opening.cancel()
        await asyncio.wait([opening])


def test_the_same_requests_are_the_same_whatever_integers_they_are(tools):
    """One end may have them from NumPy, the other from a message."""
    sides = [tools.one_sided(requests=ids) for ids in ((5, 7), np.array([5, 7]), (7, 5))]
    mine, numpy_made, others = [outline_of(plan(side, side, WHOLE)) for side in sides]
    assert mine == numpy_made
    assert mine != others


def test_a_single_lane_is_no_other_order():
    odd = {**SIZES, "dim": 3}
    paper = Layout.paper(**odd)
    assert paper.lanes == 1
    assert "X" not in paper.packed_form
    assert "X" in dataclasses.replace(paper, dim=4, lanes=2).packed_form
