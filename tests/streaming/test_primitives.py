"""flush and fetch, scatter and gather: exact, local and remote, with deadlines and cancellation."""

import asyncio
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.buffers import Region
from dvrt.errors import ChannelClosed, Corrupted, TransferTimeout
from dvrt.kv.layout import Layout, Part
from dvrt.kv.regions import Box
from dvrt.kv.spans import Span
from dvrt.streaming import Batch, Cache, Spot, fetch, flush, gather, scatter

SCHEMES = pytest.mark.parametrize(
    "scheme", ["local", "tcp", "shm", pytest.param("ucx", marks=pytest.mark.ucx)]
)
SIZES = {"layers": 3, "rows": 3, "heads": 2, "tokens": 16, "dim": 8, "item_bytes": 2}
LAYOUTS = {
    "paper": Layout.paper(**SIZES),
    "head_major": Layout.head_major(**SIZES),
    "token_major": Layout.token_major(**SIZES),
}
BOX = Box(layers=Span.of(1, 3), rows=(2, 0), heads=Span.of(0, 2), tokens=Span.of(3, 9))


def random_bytes(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def filled(device, layout, seed=None):
    cache = Cache(region=device.alloc(layout.nbytes), layout=layout)
    contents(cache)[:] = 0 if seed is None else random_bytes(layout.nbytes, seed)
    return cache


def contents(cache):
    return np.frombuffer(cache.region.view(), np.uint8)


def elements(cache, box):
    """The box as an array [layers, parts, rows, heads, tokens, dim], read element by element."""
    layout, array = cache.layout, contents(cache).view(np.uint16)
    out = np.empty((*box.shape, layout.dim), np.uint16)
    for index in np.ndindex(*out.shape):
        layer, part, row, head, token, dim = index
        base, by_axis = layout.strides(box.parts[part])
        place = (
            base
            + (box.layers.start + layer) * by_axis["L"]
            + box.rows[row] * by_axis["B"]
            + (box.heads.start + head) * by_axis["H"]
            + (box.tokens.start + token) * by_axis["T"]
        )
        if "X" in by_axis:
            place += dim // layout.lanes * by_axis["D"] + dim % layout.lanes * by_axis["X"]
        else:
            place += dim * by_axis["D"]
        out[index] = array[place // 2]
    return out


@SCHEMES
@pytest.mark.parametrize("nbytes", [0, 1, 4096, 3_000_000])
async def test_a_flushed_chunk_is_fetched_exactly(tools, scheme, nbytes, loop_kind):
    async with tools.kits() as (here, there), tools.channels(scheme) as [(a, b)]:
        source, target = bytearray(random_bytes(nbytes)), bytearray(nbytes)
        await asyncio.gather(
            flush(here, Region.of(source), a, deadline_s=10, tag="x"),
            fetch(there, Region.of(target), b, deadline_s=10, tag="x"),
        )
        assert target == source
        assert here.counters.bytes_sent == there.counters.bytes_received == nbytes


async def test_local_flush_and_fetch_cross_the_device_link(tools):
    async with tools.kits(1) as [kit]:
        device, host = kit.device.alloc(1000), kit.device.alloc_host(1000)
        host.view()[:] = bytes(random_bytes(1000))
        await fetch(kit, device, host, deadline_s=5)
        back = kit.device.alloc_host(1000)
        await flush(kit, device, back, deadline_s=5)
        assert bytes(back.view()) == bytes(random_bytes(1000))
        assert (kit.counters.copies_in, kit.counters.copies_out) == (1, 1)
        with pytest.raises(ValueError, match="999"):
            await flush(kit, device, back.part(0, 999), deadline_s=5)


@SCHEMES
@pytest.mark.parametrize(
    ("tag", "nbytes", "message"), [("y", 8, "tag"), ("x", 9, "bytes of chunk")]
)
async def test_what_was_not_expected_is_refused(tools, scheme, tag, nbytes, message):
    async with tools.kits() as (here, there), tools.channels(scheme) as [(a, b)]:
        sending = asyncio.create_task(
            flush(here, Region.of(bytearray(8)), a, deadline_s=5, tag="x")
        )
        with pytest.raises(Corrupted, match=message):
            await fetch(there, Region.of(bytearray(nbytes)), b, deadline_s=5, tag=tag)
        await asyncio.wait([sending])
        sending.exception()


@SCHEMES
@settings(max_examples=15)
@given(data=st.data())
async def test_scatter_and_gather_invert_each_other(tools, scheme, data):
    source_name, target_name = (data.draw(st.sampled_from(sorted(LAYOUTS))) for _ in "st")
    boxes = []
    shape = [data.draw(st.integers(1, SIZES[n])) for n in ("layers", "rows", "heads", "tokens")]
    for _ in "st":
        rows = tuple(data.draw(st.permutations(range(SIZES["rows"])))[: shape[1]])
        starts = [
            data.draw(st.integers(0, SIZES[n] - size))
            for n, size in zip(("layers", "rows", "heads", "tokens"), shape, strict=True)
        ]
        boxes.append(
            Box(
                layers=Span.of(starts[0], starts[0] + shape[0]),
                rows=rows,
                heads=Span.of(starts[2], starts[2] + shape[2]),
                tokens=Span.of(starts[3], starts[3] + shape[3]),
            )
        )
    async with tools.kits() as (here, there), tools.channels(scheme) as [(a, b)]:
        source = filled(here.device, LAYOUTS[source_name], seed=1)
        target = filled(there.device, LAYOUTS[target_name])
        wire = target.layout
        await asyncio.gather(
            scatter(here, source, boxes[0], a, deadline_s=10, wire=wire),
            gather(there, target, boxes[1], b, deadline_s=10),
        )
        sent = elements(source, boxes[0])
        assert np.array_equal(elements(target, boxes[1]), sent)
        assert np.count_nonzero(contents(target).view(np.uint16)) == np.count_nonzero(sent)


async def test_scatter_to_host_memory_is_two_contiguous_moves(tools):
    """Keys first, then values, in the layout's order; the paper's pinned backing."""
    async with tools.kits(1) as [kit]:
        cache, again = filled(kit.device, LAYOUTS["paper"], 2), filled(kit.device, LAYOUTS["paper"])
        packed = kit.device.alloc_host(BOX.nbytes(cache.layout))
        await scatter(kit, cache, BOX, packed, deadline_s=5)
        assert kit.counters.copies_out == 2
        await gather(kit, again, BOX, packed, deadline_s=5)
        assert kit.counters.copies_in == 2
        assert np.array_equal(elements(again, BOX), elements(cache, BOX))
        with pytest.raises(ValueError, match="packed in"):
            await scatter(kit, cache, BOX, packed.part(1, 8), deadline_s=5)


@pytest.mark.parametrize("parts", [(Part.KEY,), (Part.VALUE,), (Part.VALUE, Part.KEY)])
@pytest.mark.parametrize("name", sorted(LAYOUTS))
async def test_a_box_may_hold_some_parts_only(tools, name, parts):
    async with tools.kits(1) as [kit]:
        cache, again = filled(kit.device, LAYOUTS[name], 2), filled(kit.device, LAYOUTS[name])
        box = dataclasses.replace(BOX, parts=parts)
        packed = kit.device.alloc_host(box.nbytes(cache.layout))
        await scatter(kit, cache, box, packed, deadline_s=5)
        await gather(kit, again, box, packed, deadline_s=5)
        assert np.array_equal(elements(again, box), elements(cache, box))
        filled_in = np.count_nonzero(contents(again).view(np.uint16))
        assert filled_in == np.count_nonzero(elements(cache, box))
        assert kit.counters.copies_out == len(parts)


async def test_pages_are_gathered_by_their_table(tools):
    paged = Layout.paged(**SIZES, block_tokens=4, pages=20)
    table = [[3, 19, 0, 7], [1, 2, 4, 5], [18, 6, 17, 8]]
    async with tools.kits(1) as [kit]:
        flat = filled(kit.device, LAYOUTS["token_major"], 5)
        pool = filled(kit.device, paged)
        pool = dataclasses.replace(pool, table=table)
        again = filled(kit.device, LAYOUTS["token_major"])
        packed = kit.device.alloc_host(BOX.nbytes(paged))
        await scatter(kit, flat, BOX, packed, deadline_s=5, wire=paged)
        await gather(kit, pool, BOX, packed, deadline_s=5)
        entry = np.frombuffer(pool.region.view(), np.uint16)
        place = paged.offset(Part.KEY, layer=1, row=table[2][0], token=3) // 2
        expected = elements(flat, BOX)[0, 0, 0, 0, 0]
        assert np.array_equal(entry[place : place + SIZES["dim"]], expected)
        await scatter(kit, pool, BOX, packed, deadline_s=5)
        await gather(kit, again, BOX, packed, deadline_s=5, wire=paged)
        assert np.array_equal(elements(again, BOX), elements(flat, BOX))


@settings(max_examples=40)
@given(data=st.data())
async def test_a_batch_is_prepared_once_and_indexed_many_times(tools, data):
    """Rows at different positions move as one; each end has its own layout, rows and positions."""
    paged = Layout.paged(**SIZES, block_tokens=4, pages=20)
    table = [[3, 19, 0, 7], [1, 2, 4, 5], [18, 6, 17, 8]]
    names = data.draw(st.tuples(*[st.sampled_from([*sorted(LAYOUTS), "paged"])] * 2))
    n_tokens = data.draw(st.sampled_from([1, 1, 3]))
    spot = st.builds(Spot, st.integers(0, 2), st.integers(0, SIZES["tokens"] - n_tokens))
    layers, heads = Span.of(1, 3), Span.of(0, 2)
    async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
        ends = []
        for kit, name, seed in ((here, names[0], 1), (there, names[1], None)):
            cache = filled(kit.device, LAYOUTS.get(name, paged), seed)
            ends.append(dataclasses.replace(cache, table=table if name == "paged" else None))
        source, target = ends
        wire = LAYOUTS["token_major"]
        ours, theirs = (
            Batch(cache, wire=wire, layers=layers, heads=heads, n_tokens=n_tokens) for cache in ends
        )
        for _ in range(3):
            n = data.draw(st.integers(1, 3))
            rows = data.draw(st.permutations(range(3)))[:n]
            out = data.draw(st.lists(spot, min_size=n, max_size=n))
            into = [Spot(row, data.draw(spot).token) for row in rows]
            await asyncio.gather(
                scatter(here, source, ours.at(out), a, deadline_s=10),
                gather(there, target, theirs.at(into), b, deadline_s=10),
            )
            for sent, got in zip(out, into, strict=True):
                expected = await piece(here, source, sent, n_tokens)
                assert await piece(there, target, got, n_tokens) == expected
                assert any(expected)
        with pytest.raises(ValueError, match="of a layout|outside|tokens"):
            ours.at([Spot(0, SIZES["tokens"])])


async def piece(kit, cache, spot, n_tokens):
    """What lies at a spot, by way of a box."""
    tokens = Span.of(spot.token, spot.token + n_tokens)
    box = Box(layers=Span.of(1, 3), rows=(spot.row,), heads=Span.of(0, 2), tokens=tokens)
    packed = kit.device.alloc_host(box.nbytes(cache.layout))
    await scatter(kit, cache, box, packed, deadline_s=5, wire=LAYOUTS["token_major"])
    return bytes(packed.view())


async def test_long_runs_travel_without_staging(tools):
    layout = Layout.head_major(layers=1, rows=1, heads=2, tokens=1024, dim=64, item_bytes=2)
    async with tools.kits() as (here, there), tools.channels("tcp") as [(a, b)]:
        source, target = filled(here.device, layout, seed=3), filled(there.device, layout)
        box = Box(layers=Span.of(0, 1), rows=(0,), heads=Span.of(0, 2), tokens=Span.of(0, 1000))
        await asyncio.gather(
            scatter(here, source, box, a, deadline_s=10),
            gather(there, target, box, b, deadline_s=10),
        )
        assert np.array_equal(elements(target, box), elements(source, box))
        assert here.staging.statistics().leases == 0


@SCHEMES
async def test_deadlines_end_in_a_transfer_time_out(tools, scheme, loop_kind):
    async with tools.kits() as (here, there), tools.channels(scheme) as [(a, b)]:
        with pytest.raises(TransferTimeout):
            await fetch(there, Region.of(bytearray(8)), b, deadline_s=0.01)
        big = Region.of(bytearray(320 << 20))  # more than shared memory takes in flight
        with pytest.raises(TransferTimeout):
            await flush(here, big, a, deadline_s=0.05)
        with pytest.raises(ChannelClosed):
            await flush(here, big, a, deadline_s=0.05)


@SCHEMES
async def test_a_waiting_fetch_can_be_cancelled_and_tried_again(tools, scheme):
    async with tools.kits() as (here, there), tools.channels(scheme) as [(a, b)]:
        target = bytearray(8)
        waiting = asyncio.create_task(fetch(there, Region.of(target), b, deadline_s=5))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.gather(
            flush(here, Region.of(bytearray(b"12345678")), a, deadline_s=5),
            fetch(there, Region.of(target), b, deadline_s=5),
        )
        assert target == b"12345678"


def test_a_cache_that_does_not_fit_its_memory_is_refused():
    with pytest.raises(ValueError, match="region of 8"):
        Cache(region=Region.of(bytearray(8)), layout=LAYOUTS["paper"])
