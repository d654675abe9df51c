"""stream_out and stream_in: any two set-ups, every mode, each byte in its place, proved."""

import asyncio
import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.cuda.null_device import NullDevice, NullProfile
from dvrt.errors import ChannelClosed, Corrupted, DvrtError, PeerLost, TransferTimeout
from dvrt.kv.plan import Side, uniform_batches
from dvrt.kv.spans import Span, split_evenly
from dvrt.streaming import (
    Behind,
    Cache,
    Grouping,
    Kit,
    LayerGate,
    Mode,
    Setups,
    open_inflow,
    open_link,
    open_outflow,
    stream_in,
    stream_out,
)
from dvrt.transport import get_transport
from dvrt.transport.faults import Fault, FaultKind
from dvrt.transport.faulty import FaultyTransport

SCHEMES = pytest.mark.parametrize(
    "scheme", ["local", "tcp", "shm", pytest.param("ucx", marks=pytest.mark.ucx)]
)


async def drain(boxes):
    async with contextlib.aclosing(boxes):
        return [box async for box in boxes]


@contextlib.asynccontextmanager
async def cluster(
    tools, source, target, orders, *, tokens, kit_options=None, scheme="local", faults=()
):
    """Every worker of both sides, and a link between each two of different sides."""
    async with contextlib.AsyncExitStack() as stack:
        here, there = await stack.enter_async_context(tools.kits(**(kit_options or {})))
        pairs = [(s, t) for s in source.workers for t in target.workers]
        channels = await stack.enter_async_context(tools.channels(scheme, len(pairs)))
        links = {"source": {}, "target": {}}
        for (s, t), (a, b) in zip(pairs, channels, strict=True):
            a = FaultyTransport(get_transport(scheme), faults).wrap(a) if faults else a
            one, other = await asyncio.gather(
                open_link(a, here, tools.SETUP, deadline_s=5),
                open_link(b, there, tools.SETUP, deadline_s=5),
            )
            links["source"].setdefault(s, {})[t] = one
            links["target"].setdefault(t, {})[s] = other
        caches = {}
        for name, side, kit, order in (
            ("source", source, here, orders[0]),
            ("target", target, there, orders[1]),
        ):
            for worker in side.workers:
                made = tools.caches(kit.device, side, worker, order, tokens=tokens)
                caches[name, worker] = made
        for worker in source.workers:
            for batch, cache in enumerate(caches["source", worker]):
                whole = Span.of(0, tokens)
                tools.fill(tools.array(cache), cache.layout, source, worker, batch, whole)
        try:
            yield here, there, links, caches
        finally:
            every = [
                link for side in links.values() for one in side.values() for link in one.values()
            ]
            await asyncio.gather(*(link.aclose() for link in every))


async def move(kits, links, caches, source, target, tokens, **options):
    here, there = kits
    setups = Setups(
        source=source, target=target, wire=caches["target", target.workers[0]][0].layout
    )
    received = []
    async with asyncio.TaskGroup() as group:
        for worker in source.workers:
            group.create_task(
                stream_out(
                    here,
                    "kv",
                    setups,
                    worker,
                    caches["source", worker],
                    links["source"][worker],
                    tokens,
                    deadline_s=20,
                    **options,
                )
            )
        for worker in target.workers:
            boxes = stream_in(
                there,
                "kv",
                setups,
                worker,
                caches["target", worker],
                links["target"][worker],
                tokens,
                deadline_s=20,
            )
            received.append(group.create_task(drain(boxes)))
    return [box for task in received for box in task.result()]


@st.composite
def sides(draw, n_layers, n_heads, requests):
    rows = draw(st.permutations(requests))
    return Side(
        layers=split_evenly(n_layers, draw(st.integers(1, min(n_layers, 4)))),
        heads=split_evenly(n_heads, draw(st.integers(1, n_heads))),
        batches=uniform_batches(rows, draw(st.integers(1, 3))),
    )


@settings(max_examples=25)
@given(data=st.data())
async def test_any_two_set_ups_in_any_mode(tools, data):
    n_layers, n_heads = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 2))
    requests = list(range(data.draw(st.integers(1, 4))))
    source = data.draw(sides(n_layers, n_heads, [*requests, 7]))
    target = data.draw(sides(n_layers, n_heads, requests))
    orders = [data.draw(st.sampled_from(["LCBHTD", "LCBTHD", "LBHDTX", "LBHNTD"])) for _ in "st"]
    tokens = {}
    for request in requests:
        start = data.draw(st.integers(0, 5))
        tokens[request] = Span.of(start, data.draw(st.integers(start + 1, 6)))
    mode = data.draw(st.sampled_from(list(Mode)))
    grouping = data.draw(st.sampled_from([Grouping.LAYERS, Grouping.WHOLE]))
    limit = data.draw(st.sampled_from([100, 1 << 20]))
    made = cluster(tools, source, target, orders, tokens=6, kit_options={"max_parcel_bytes": limit})
    async with made as (here, there, links, caches):
        boxes = await move(
            (here, there), links, caches, source, target, tokens, mode=mode, grouping=grouping
        )
        for worker in target.workers:
            for batch, cache in enumerate(caches["target", worker]):
                tools.ensure_filled(cache, target, worker, batch, tokens)
        assert {r for box in boxes for r in box.requests} == set(requests)
        assert sum(box.tokens.size * len(box.requests) for box in boxes) >= len(requests)


@SCHEMES
async def test_a_prompt_moves_over_every_transport(tools, scheme, loop_kind):
    source = Side(
        layers=split_evenly(4, 2), heads=split_evenly(2, 1), batches=uniform_batches(range(3), 3)
    )
    target = Side(
        layers=split_evenly(4, 3), heads=split_evenly(2, 2), batches=uniform_batches(range(3), 2)
    )
    tokens = Span.of(0, 100)
    made = cluster(tools, source, target, ("LBHDTX", "LCBTHD"), tokens=100, scheme=scheme)
    async with made as (here, there, links, caches):
        await move((here, there), links, caches, source, target, tokens)
        for worker in target.workers:
            for batch, cache in enumerate(caches["target", worker]):
                tools.ensure_filled(cache, target, worker, batch, tokens)


@pytest.mark.parametrize("mode", list(Mode))
async def test_a_token_costs_the_papers_number_of_copies(tools, mode):
    """Naive: L·B·H·(Dh/x) + L·B·H runs; otherwise two copies, keys and values."""
    side = tools.one_sided(requests=(0, 1, 2))
    tokens = Span.of(5, 6)
    async with cluster(tools, side, side, ("LBHDTX", "LBHDTX"), tokens=8) as made:
        here, there, links, caches = made
        paper = tools.caches(here.device, side, tools.ONE, "LBHDTX", tokens=8, value_order="LBHTD")
        tools.fill(tools.array(paper[0]), paper[0].layout, side, tools.ONE, 0, Span.of(0, 8))
        caches["source", tools.ONE] = paper
        caches["target", tools.ONE] = tools.caches(
            there.device, side, tools.ONE, "LBHDTX", tokens=8, value_order="LBHTD"
        )
        await move(
            (here, there), links, caches, side, side, tokens, mode=mode, grouping=Grouping.WHOLE
        )
        tools.ensure_filled(caches["target", tools.ONE][0], side, tools.ONE, 0, tokens)
        n_layers, n_rows, n_heads, chunks = 4, 3, 2, 4 // 2
        naive = n_layers * n_rows * n_heads * chunks + n_layers * n_rows * n_heads
        expected = naive if mode is Mode.NAIVE else 2
        assert here.counters.copies_out == expected
        assert here.counters.parcels_sent == (naive if mode is Mode.NAIVE else 1)


async def test_a_layer_is_sent_before_the_layer_after_next_is_computed(tools):
    side = tools.one_sided(n_layers=6, requests=(0, 1))
    async with cluster(tools, side, side, ("LCBHTD", "LCBTHD"), tokens=32) as made:
        here, there, links, caches = made
        gate = LayerGate()
        arrived = []

        async def compute():
            for layer in range(6):
                await asyncio.sleep(0.02)
                here.record("computed", "kv", 0, layer=layer)
                gate.open(layer, here.device.mark())

        async with asyncio.TaskGroup() as group:
            group.create_task(compute())
            moving = move((here, there), links, caches, side, side, Span.of(0, 30), gate=gate)
            arrived = await moving
        at = {(e.kind, e.layer): e.at for e in here.journal}
        for layer in range(4):
            assert at["sent", layer] < at["computed", layer + 2]
        assert [box.layers.start for box in arrived] == [0, 1, 2, 3, 4, 5]


async def test_the_buffered_mode_waits_for_the_whole_compute(tools):
    side = tools.one_sided(n_layers=3)
    async with cluster(tools, side, side, ("LCBHTD", "LCBTHD"), tokens=8) as made:
        here, there, links, caches = made
        gate = LayerGate()
        moving = asyncio.create_task(
            move(
                (here, there),
                links,
                caches,
                side,
                side,
                Span.of(0, 8),
                mode=Mode.BUFFERED,
                gate=gate,
            )
        )
        gate.open(0)
        gate.open(1)
        await asyncio.sleep(0.03)
        assert here.counters.parcels_sent == 0
        gate.open(2)
        await moving
        assert here.counters.parcels_sent == 3


async def test_steps_travel_behind_the_compute_of_the_next(tools):
    """OVERLAPPED: pushing returns at once, the watermark follows, every step is proved."""
    side = tools.one_sided()
    async with cluster(tools, side, side, ("LCBHTD", "LCBTHD"), tokens=40) as made:
        here, there, links, caches = made
        me, setups = (
            tools.ONE,
            Setups(source=side, target=side, wire=caches["target", tools.ONE][0].layout),
        )
        inflow = open_inflow(there, "log", setups, me, caches["target", me], links["target"][me])
        outflow = await open_outflow(
            here,
            "log",
            setups,
            me,
            caches["source", me],
            links["source"][me],
            deadline_s=5,
            mode=Mode.OVERLAPPED,
            grouping=Grouping.WHOLE,
        )

        async def receive():
            for step in range(40):
                async for _ in inflow.take(step, Span.of(step, step + 1), deadline_s=5):
                    pass

        receiving = asyncio.create_task(receive())
        behind = Behind(outflow, limit=2, step_s=5)
        for step in range(40):
            here.record("computed", "log", step)
            await behind.push(step, Span.of(step, step + 1))
        await behind.drain(deadline_s=5)
        assert behind.proved == 39
        await receiving
        await behind.aclose()
        outflow.close()
        tools.ensure_filled(caches["target", me][0], side, me, 0, Span.of(0, 40))
        events = {(e.kind, e.step): e.at for e in here.journal}
        assert all(events["computed", step + 1] <= events["sent", step] for step in range(20))


async def test_rows_may_change_between_steps(tools):
    before, after = tools.one_sided(requests=(0, 1)), tools.one_sided(requests=(5, 1))
    async with cluster(tools, before, before, ("LCBHTD", "LCBHTD"), tokens=4) as made:
        here, there, links, caches = made
        me, wire = tools.ONE, caches["target", tools.ONE][0].layout
        setups = Setups(source=before, target=before, wire=wire)
        later = Setups(source=after, target=after, wire=wire)
        inflow = open_inflow(there, "log", setups, me, caches["target", me], links["target"][me])
        outflow = await open_outflow(
            here, "log", setups, me, caches["source", me], links["source"][me], deadline_s=5
        )
        source = caches["source", me][0]
        await asyncio.gather(
            outflow.ship(0, Span.of(0, 2), deadline_s=5),
            drain(inflow.take(0, Span.of(0, 2), deadline_s=5)),
        )
        tools.fill(tools.array(source), source.layout, after, me, 0, Span.of(0, 4))
        tokens = {5: Span.of(0, 1), 1: Span.of(2, 3)}
        await asyncio.gather(
            outflow.ship(1, tokens, deadline_s=5, setups=later),
            drain(inflow.take(1, tokens, deadline_s=5, setups=later)),
        )
        outflow.close()
        target = caches["target", me][0]
        expected = np.full(target.layout.nbytes // 4, -1, np.int32)
        tools.fill(expected, target.layout, before, me, 0, Span.of(0, 2))
        tools.fill(expected, target.layout, after, me, 0, tokens)
        assert np.array_equal(tools.array(target), expected)


@SCHEMES
@pytest.mark.parametrize("byte", [200, 5000])
async def test_damaged_bytes_are_never_proved_and_the_link_lives(tools, scheme, byte):
    side = tools.one_sided()
    plan = [Fault(kind=FaultKind.FLIP, message=3, byte=byte, bit=5)]
    made = cluster(tools, side, side, ("LCBHTD", "LCBTHD"), tokens=64, scheme=scheme, faults=plan)
    async with made as (here, there, links, caches):
        with pytest.raises(ExceptionGroup) as caught:
            await move((here, there), links, caches, side, side, Span.of(0, 64))
        assert caught.group_contains(Corrupted)
        assert there.counters.corrupted_parcels == 1
        await move((here, there), links, caches, side, side, Span.of(0, 64))
        tools.ensure_filled(caches["target", tools.ONE][0], side, tools.ONE, 0, Span.of(0, 64))


async def test_without_digests_count_and_bytes_are_proved_still(tools):
    side = tools.one_sided()
    options = {"is_verified": False}
    async with cluster(
        tools, side, side, ("LCBHTD", "LCBTHD"), tokens=8, kit_options=options
    ) as made:
        here, there, links, caches = made
        await move((here, there), links, caches, side, side, Span.of(0, 8))
        tools.ensure_filled(caches["target", tools.ONE][0], side, tools.ONE, 0, Span.of(0, 8))


async def test_a_receiver_that_never_comes_ends_in_a_time_out(tools):
    side = tools.one_sided()
    async with cluster(tools, side, side, ("LCBHTD", "LCBTHD"), tokens=8) as made:
        here, _, links, caches = made
        setups = Setups(source=side, target=side, wire=caches["target", tools.ONE][0].layout)
        with pytest.raises(TransferTimeout):
            await stream_out(
                here,
                "nobody",
                setups,
                tools.ONE,
                caches["source", tools.ONE],
                links["source"][tools.ONE],
                Span.of(0, 8),
                deadline_s=0.05,
            )


async def test_a_peer_that_is_lost_fails_both_ends(tools):
    side = tools.one_sided()
    async with cluster(tools, side, side, ("LCBHTD", "LCBTHD"), tokens=8) as made:
        here, there, links, caches = made
        gate = LayerGate()
        moving = asyncio.create_task(
            move((here, there), links, caches, side, side, Span.of(0, 8), gate=gate)
        )
        gate.open(0)
        await asyncio.sleep(0.02)
        links["target"][tools.ONE][tools.ONE].abort()
        with pytest.raises(ExceptionGroup) as caught:
            await moving
        assert all(isinstance(error, DvrtError) for error in caught.value.exceptions)
        assert caught.group_contains((PeerLost, ChannelClosed))


async def test_two_ends_that_differ_name_the_field(tools):
    import dataclasses

    from dvrt.errors import ConfigError

    other = dataclasses.replace(tools.SETUP, dim=8)
    async with tools.kits() as (here, there), tools.channels("local") as [(a, b)]:
        results = await asyncio.gather(
            open_link(a, here, tools.SETUP, deadline_s=5),
            open_link(b, there, other, deadline_s=5),
            return_exceptions=True,
        )
        assert [type(error) for error in results] == [ConfigError, ConfigError]
        assert str(results[0]) == "dim differs: 4 here, 8 there"


@pytest.mark.virtual
async def test_in_virtual_time_a_layer_travels_behind_the_next_to_the_digit(tools):
    """Six layers of a second each; the copy of one takes half a second: 6.5 in all, not 9."""
    loop = asyncio.get_running_loop()
    side = tools.one_sided(n_layers=6, requests=(0,))
    layout = tools.layout_of(side, tools.ONE, 0, "LCBHTD", tokens=8)
    layer_bytes = layout.nbytes // 6
    sender = NullDevice(NullProfile(link_bytes_per_s=2 * layer_bytes))
    receiver = NullDevice(NullProfile())
    setups = Setups(source=side, target=side, wire=layout)
    here, there = Kit(sender), Kit(receiver)
    async with tools.channels("local") as [(a, b)]:
        one, other = await asyncio.gather(
            open_link(a, here, tools.SETUP, deadline_s=5),
            open_link(b, there, tools.SETUP, deadline_s=5),
        )
        caches = [
            Cache(region=device.alloc(layout.nbytes), layout=layout)
            for device in (sender, receiver)
        ]
        tools.fill(tools.array(caches[0]), layout, side, tools.ONE, 0, Span.of(0, 8))
        gate = LayerGate()

        async def compute():
            for layer in range(6):
                await sender.run(lambda: None, cost_s=1.0)
                gate.open(layer, sender.mark())

        began = loop.time()
        arguments = (setups, tools.ONE)
        async with asyncio.TaskGroup() as group:
            group.create_task(compute())
            group.create_task(
                stream_out(
                    here,
                    "kv",
                    *arguments,
                    [caches[0]],
                    {tools.ONE: one},
                    Span.of(0, 8),
                    deadline_s=60,
                    gate=gate,
                )
            )
            boxes = stream_in(
                there,
                "kv",
                *arguments,
                [caches[1]],
                {tools.ONE: other},
                Span.of(0, 8),
                deadline_s=60,
            )
            group.create_task(drain(boxes))
        assert loop.time() - began == pytest.approx(6.5, abs=1e-3)
        tools.ensure_filled(caches[1], side, tools.ONE, 0, Span.of(0, 8))
        await asyncio.gather(one.aclose(), other.aclose())
    for kit, device in ((here, sender), (there, receiver)):
        await kit.aclose()
        await device.aclose()


async def test_a_receiver_whose_second_link_is_over_expects_nothing_of_the_first(tools):
    """What its peer would send has nobody to take it: it is told at once, and keeps no staging."""
    source = Side(
        layers=split_evenly(4, 2), heads=(Span.of(0, 2),), batches=uniform_batches(range(2), 2)
    )
    target = tools.one_sided(requests=range(2))
    made = cluster(tools, source, target, ("LCBHTD", "LCBTHD"), tokens=8)
    async with made as (here, there, links, caches):
        first, second = source.workers
        caught = caches["target", tools.ONE]
        setups = Setups(source=source, target=target, wire=caught[0].layout)
        links["target"][tools.ONE][second].abort()
        await links["target"][tools.ONE][second].wait_over()
        sending = asyncio.create_task(
            stream_out(
                *(here, "kv", setups, first, caches["source", first]),
                *(links["source"][first], Span.of(0, 8)),
                deadline_s=5,
            )
        )
        await asyncio.sleep(0.01)
        with pytest.raises(PeerLost):
            open_inflow(there, "kv", setups, tools.ONE, caught, links["target"][tools.ONE])
        with pytest.raises(PeerLost, match="is over"):
            await sending
