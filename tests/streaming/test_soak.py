"""Mixed transfers with faults, for seconds or for half an hour: nothing leaks, grows or is altered.

``DVRT_SOAK_S`` sets how long the long form runs. Every worker below lives many lives: it opens what
it needs, moves bytes that only this life has, lets faults and cancellations hit, and compares.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import statistics
import sys
from collections import Counter

import psutil
import pytest

from dvrt.buffers import Region
from dvrt.errors import DvrtError
from dvrt.kv.plan import Side
from dvrt.kv.regions import Box
from dvrt.kv.spans import Span, split_evenly
from dvrt.streaming import (
    Grouping,
    Mode,
    Setups,
    fetch,
    flush,
    gather,
    open_link,
    scatter,
    stream_in,
    stream_out,
)
from dvrt.transport import connect, get_transport
from dvrt.transport.faults import FaultKind, RandomFaults
from dvrt.transport.faulty import FaultyTransport
from tests.streaming.relay import ME, STEPS, pair
from tests.transports.peer import ECHO, running_peer
from tests.transports.peer import connect as connect_to_peer

SOAK_S = float(os.environ.get("DVRT_SOAK_S", "1800"))
SCHEMES = ("local", "tcp", "shm")
ORDERS = ("LCBHTD", "LCBTHD", "CLBHTD", "LBCTHD")
RATES = {
    FaultKind.CUT: 0.01,
    FaultKind.FLIP: 0.01,
    FaultKind.DROP: 0.003,
    FaultKind.DELAY: 0.02,
    FaultKind.STALL: 0.003,
    FaultKind.HALF_OPEN: 0.002,
}
TOKENS = 48
QUICK_S = 5.0
STALL_S = 0.4


class Soak:
    """What the workers share: the end, the seed, and what they have counted."""

    def __init__(self, tools, tmp_path, seconds):
        self.tools, self.tmp_path = tools, tmp_path
        self.loop = asyncio.get_running_loop()
        self.ends_at = self.loop.time() + seconds
        self.counts = Counter()

    @property
    def is_over(self):
        return self.loop.time() >= self.ends_at

    def faulty(self, rng, scheme):
        plan = RandomFaults(
            seed=rng.getrandbits(32), rates=RATES, longest_s=0.2, bytes_below=1 << 16
        )
        return FaultyTransport(get_transport(scheme), plan)

    def count(self, name, error):
        """One transfer and how it ended; only dvrt's own errors and cancellation are expected."""
        if error is None:
            self.counts[name] += 1
            return
        if not isinstance(error, DvrtError | asyncio.CancelledError):
            raise error
        self.counts[f"{name}: {type(error).__name__}"] += 1

    async def live(self, worker, *where):
        """One worker, life after life, each with a seed of its own."""
        number = 0
        while not self.is_over:
            number += 1
            rng = random.Random(f"{worker.__name__}{where}{number}")
            await worker(self, rng, *where)
            self.counts["lives"] += 1


async def ended(task, rng, cancel_share):
    """How a task ended, some of them cancelled at any moment."""
    if rng.random() < cancel_share:
        await asyncio.sleep(rng.random() * 0.01)
        task.cancel()
    await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def side_of(rng, requests):
    rows = list(requests)
    rng.shuffle(rows)
    size = rng.choice((1, 2, 4))
    batches = [tuple(rows[i : i + size]) for i in range(0, len(rows), size)]
    return Side(
        layers=split_evenly(4, rng.choice((1, 1, 2))),
        heads=(Span.of(0, 2),),
        batches=tuple(b + (None,) * (size - len(b)) for b in batches),
    )


async def streams(soak, rng, scheme):
    """stream_out and stream_in between any two set-ups, several at once on every link."""
    tools, faulty = soak.tools, soak.faulty(rng, scheme)
    source, target = (side_of(rng, range(4)) for _ in "ab")
    pairs = [(s, t) for s in source.workers for t in target.workers]
    async with contextlib.AsyncExitStack() as stack:
        kits = await stack.enter_async_context(tools.kits(2, staging_bytes=4 << 20))
        channels = await stack.enter_async_context(tools.channels(scheme, len(pairs)))
        links = {"source": {}, "target": {}}
        for (s, t), ends in zip(pairs, channels, strict=True):
            opening = [
                open_link(faulty.wrap(end), kit, tools.SETUP, deadline_s=1, stall_s=STALL_S)
                for end, kit in zip(ends, kits, strict=True)
            ]
            one, other = await asyncio.gather(*opening, return_exceptions=True)
            for end in (one, other):
                if isinstance(end, BaseException):
                    soak.count("link", end)
                else:
                    stack.push_async_callback(end.aclose, deadline_s=1)
            if isinstance(one, BaseException) or isinstance(other, BaseException):
                return
            links["source"].setdefault(s, {})[t] = one
            links["target"].setdefault(t, {})[s] = other
        for number in range(rng.randrange(1, 4)):
            await asyncio.gather(
                *(stream(soak, rng, f"{number}/{i}", kits, links, source, target) for i in "ab")
            )


async def stream(soak, rng, name, kits, links, source, target):
    tools, (here, there) = soak.tools, kits
    start = rng.randrange(TOKENS)
    tokens = Span.of(start, rng.randrange(start, TOKENS) + 1)
    orders = [rng.choice(ORDERS) for _ in "ab"]
    ours, theirs = (
        {w: tools.caches(kit.device, side, w, order, tokens=TOKENS) for w in side.workers}
        for kit, side, order in ((here, source, orders[0]), (there, target, orders[1]))
    )
    for worker, caches in ours.items():
        for batch, cache in enumerate(caches):
            whole = Span.of(0, TOKENS)
            tools.fill(tools.array(cache), cache.layout, source, worker, batch, whole)
    setups = Setups(source=source, target=target, wire=theirs[target.workers[0]][0].layout)
    options = {"mode": rng.choice(list(Mode)), "grouping": rng.choice(list(Grouping)[1:])}
    tasks = [
        asyncio.create_task(
            stream_out(
                *(here, name, setups, w, ours[w], links["source"][w], tokens),
                deadline_s=2,
                **options,
            )
        )
        for w in source.workers
    ]
    receiving = [
        asyncio.create_task(
            drain(
                stream_in(
                    *(there, name, setups, w, theirs[w], links["target"][w], tokens), deadline_s=2
                )
            )
        )
        for w in target.workers
    ]
    errors = await asyncio.gather(*(ended(t, rng, 0.1) for t in (*tasks, *receiving)))
    for task, error in zip((*tasks, *receiving), errors, strict=True):
        soak.count("stream", error)
        if error is None and task in receiving:
            worker = target.workers[receiving.index(task)]
            for batch, cache in enumerate(theirs[worker]):
                tools.ensure_filled(cache, target, worker, batch, tokens)
                soak.counts["bytes"] += cache.layout.entry_bytes * tokens.size


async def drain(boxes):
    async with contextlib.aclosing(boxes):
        async for _ in boxes:
            pass


async def relays(soak, rng, scheme):
    """A log that is streamed step by step over links that break and are opened again."""
    rates = {**RATES, FaultKind.CUT: 0.03}
    async with pair(soak.tools, scheme, rates, rng.getrandbits(32)) as made:
        receiving = asyncio.create_task(made.receive())
        error = await ended(asyncio.create_task(made.send()), rng, 0.05)
        soak.count("relay", error)
        soak.counts["incarnations"] += made.lineage.incarnation
        if error is None:
            inflow = await receiving
            side = made.setups.source
            soak.tools.ensure_filled(made.target[0], side, ME, 0, Span.of(0, STEPS))
            soak.counts["bytes"] += made.target[0].layout.nbytes
            await inflow.cancel()
        receiving.cancel()
        await asyncio.wait([receiving])


async def chunks(soak, rng, scheme):
    """flush, fetch, scatter and gather, until a fault breaks the channel."""
    tools, faulty = soak.tools, soak.faulty(rng, scheme)
    side = tools.one_sided()
    async with tools.kits() as (here, there), tools.channels(scheme) as [ends]:
        a, b = (faulty.wrap(end) for end in ends)
        [ours] = tools.caches(here.device, side, ME, "LCBHTD", tokens=TOKENS)
        tools.fill(tools.array(ours), ours.layout, side, ME, 0, Span.of(0, TOKENS))
        for number in range(30):
            body = rng.randbytes(rng.choice((1, 5_000, 300_000)))
            memory = bytearray(len(body))
            [theirs] = tools.caches(there.device, side, ME, "LCBTHD", tokens=TOKENS)
            tokens = Span.of(0, rng.randrange(TOKENS) + 1)
            box = Box(layers=Span.of(0, 4), rows=(0, 1, 2), heads=Span.of(0, 2), tokens=tokens)
            options = {"deadline_s": 0.5, "tag": str(number)}
            wire = {"wire": theirs.layout}
            is_chunk = rng.random() < 0.5
            if is_chunk:
                moves = (
                    flush(here, Region.of(body), a, **options),
                    fetch(there, Region.of(memory), b, **options),
                )
            else:
                moves = (
                    scatter(here, ours, box, a, **options, **wire),
                    gather(there, theirs, box, b, **options, **wire),
                )
            tasks = [asyncio.create_task(move) for move in moves]
            sent, got = await asyncio.gather(*(ended(task, rng, 0.03) for task in tasks))
            soak.count("chunk", sent)
            soak.count("chunk", got)
            if got is None:
                if is_chunk:
                    assert memory == body
                else:
                    tools.ensure_filled(theirs, side, ME, 0, tokens)
                soak.counts["bytes"] += len(body)
            for kit in (here, there):
                kit.device.free(theirs.region)
            if sent is not None or got is not None:
                break
        for channel in (a, b):
            channel.abort()
            await channel.quiet()


async def disks(soak, rng):
    """A log on disk, left at any moment: what was flushed is there, whole and in order."""
    path, safe = soak.tmp_path / "log", 0
    path.unlink(missing_ok=True)
    bodies = [rng.randbytes(rng.choice((10, 20_000, 400_000))) for _ in range(8)]
    async with await connect(f"file://{path}", deadline_s=5) as log:
        for number, body in enumerate(bodies):
            task = asyncio.create_task(log.send(b"%d" % number, Region.of(body)))
            error = await ended(task, rng, 0.05)
            soak.count("record", error)
            if error is not None:
                break
            if rng.random() < 0.5:
                await log.flush(deadline_s=5)
                safe = number + 1
        await log.quiet()
        log.abort()
    async with await connect(f"file://{path}", deadline_s=5) as log:
        count = 0
        while log.has_more:
            incoming = await log.receive(deadline_s=5)
            [got] = await incoming.take(deadline_s=5)
            assert (incoming.header, got) == (b"%d" % count, bodies[count])
            soak.counts["bytes"] += len(got)
            count += 1
        assert count >= safe


async def processes(soak, rng, scheme):
    """An echo in another process that is stopped, continued and killed while bytes are moving."""
    opening = running_peer({"tcp": "tcp://127.0.0.1:0", "shm": "shm://"}[scheme], ECHO)
    try:
        peer = await asyncio.to_thread(opening.__enter__)
    except AssertionError:
        soak.counts["peer: not started"] += 1
        return
    try:
        channel = await connect_to_peer(peer.address, deadline_s=5)
        killing = asyncio.create_task(harm(peer, rng))
        try:
            is_first = True  # a process may take longer to start than the quick form lasts
            while is_first or not soak.is_over:
                is_first = False
                body = rng.randbytes(rng.choice((1, 100_000, 3_000_000)))
                sending = asyncio.create_task(channel.send(b"x", Region.of(body), deadline_s=5))
                incoming = await channel.receive(deadline_s=5)
                [got] = await incoming.take(deadline_s=5)
                await sending
                assert got == body
                soak.count("echo", None)
                soak.counts["bytes"] += 2 * len(body)
        except DvrtError as error:
            soak.count("echo", error)
            channel.abort()
            await asyncio.wait([sending])
            sending.exception()
        finally:
            channel.abort()
            await channel.quiet()
            killing.cancel()
            await asyncio.wait([killing])
    finally:
        peer.resume()
        await asyncio.to_thread(opening.__exit__, None, None, None)


async def harm(peer, rng):
    await asyncio.sleep(rng.random())
    peer.stop()
    await asyncio.sleep(rng.random() * 0.1)
    peer.resume()
    await asyncio.sleep(rng.random())
    peer.kill()


async def watch(soak, seconds, samples):
    """Samples of what is held: what malloc keeps in its arenas for later is given back first."""
    me = psutil.Process()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda kept_bytes: None)
    while not soak.is_over:
        gc.collect()
        trim(0)
        samples.append(
            {
                "memory": me.memory_info().rss,
                "files": me.num_fds(),
                "tasks": len(asyncio.all_tasks()),
                "shared": len(os.listdir("/dev/shm")),
            }
        )
        await asyncio.sleep(seconds / 200)


def growth(samples, name):
    """The last third's median over the middle one's: a peak is what was in flight, not growth."""
    values = [sample[name] for sample in samples]
    third = len(values) // 3
    return statistics.median(values[-third:]) / max(1, statistics.median(values[third : 2 * third]))


@pytest.mark.may_block
@pytest.mark.parametrize(
    "seconds",
    [
        QUICK_S,
        pytest.param(
            SOAK_S,
            marks=[pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(SOAK_S + 300)],
        ),
    ],
)
async def test_mixed_transfers_with_faults(tools, tmp_path, seconds, record_property):
    soak, samples = Soak(tools, tmp_path, seconds), []
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(soak, seconds, samples))
        for scheme in SCHEMES:
            for worker in (streams, relays, chunks):
                group.create_task(soak.live(worker, scheme))
        group.create_task(soak.live(disks))
        for scheme in ("tcp", "shm"):
            group.create_task(soak.live(processes, scheme))
    counts = dict(sorted(soak.counts.items()))
    grown = {name: round(growth(samples, name), 3) for name in samples[0]}
    record_property("counts", counts)
    record_property("growth", grown)
    if seconds > QUICK_S:
        sys.__stdout__.write(f"\n{seconds:.0f} s of {counts}; growth {grown}; {samples[-1]}\n")
    for name in ("stream", "relay", "chunk", "record", "echo"):
        assert counts[name] > 0, counts
    assert sum(count for name, count in counts.items() if ":" in name) > 0
    assert counts.get("peer: not started", 0) <= counts["lives"] / 200, counts
    if seconds > QUICK_S:
        assert grown["memory"] < 1.1, samples
        assert max(grown["files"], grown["tasks"]) < 1.3, samples
