"""A thousand cancelled transfers per transport: memory that is used again is never written to.

Five hundred on each kind of event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading

import pytest

from dvrt.buffers import Region
from dvrt.errors import PeerLost
from dvrt.transport import connect, get_transport
from dvrt.transport.conformance import open_pair

ADDRESSES = {"local": "local://", "tcp": "tcp://127.0.0.1:0", "shm": "shm://"}
ROUNDS = 500
SLOTS, SLOT_BYTES = 4, 1_200_000


@pytest.mark.parametrize("scheme", ADDRESSES)
async def test_no_late_write(scheme, loop_kind):
    """Slots are quarantined until quiet() and leased again at once, with a new pattern."""
    draw = random.Random(11)
    transport = get_transport(scheme)
    slots = [bytearray(SLOT_BYTES) for _ in range(SLOTS)]
    fresh = [bytes([0x40 + i]) * SLOT_BYTES for i in range(SLOTS)]
    cancelled = 0
    for number in range(ROUNDS):
        slot = number % SLOTS
        async with open_pair(transport, ADDRESSES[scheme]) as (a, b):
            body = bytes([number % 64]) * draw.choice((10, 30_000, SLOT_BYTES))
            memory = Region.of(memoryview(slots[slot])[: len(body)])
            sending = asyncio.create_task(a.send(b"", Region.of(body)))
            filling = asyncio.create_task(fill(b, memory))
            for _ in range(draw.randrange(7)):
                await asyncio.sleep(0)
            tasks = [sending, filling]
            draw.shuffle(tasks)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                assert result is None or isinstance(result, asyncio.CancelledError | PeerLost)
            cancelled += any(isinstance(result, asyncio.CancelledError) for result in results)
            await b.quiet()
            await a.quiet()
            slots[slot][:] = fresh[slot]
            if number >= SLOTS:
                assert slots[(number + 1) % SLOTS] == fresh[(number + 1) % SLOTS]
            await asyncio.sleep(0)
            assert slots[slot] == fresh[slot]
    assert cancelled > ROUNDS // 10


async def test_no_late_write_from_or_to_a_disk(tmp_path, loop_kind):
    """Disk work goes on in its thread after it was cancelled: until quiet() the slot is its own."""
    draw = random.Random(12)
    slots = [bytearray(SLOT_BYTES) for _ in range(SLOTS)]
    fresh = [bytes([0x40 + i]) * SLOT_BYTES for i in range(SLOTS)]
    counts = itertools.count()
    bodies = [bytes([i]) * size for i, size in enumerate((10, 30_000, SLOT_BYTES))]
    cancelled, log = 0, None
    for number in range(ROUNDS):
        slot, body = number % SLOTS, draw.choice(bodies)
        memory = Region.of(memoryview(slots[slot])[: len(body)])
        memory.view()[:] = body
        if log is None:
            log = await connect(f"file://{tmp_path}/log{next(counts)}", deadline_s=10)
        is_read = number % 2
        if is_read:
            await log.send(b"", memory)
            slots[slot][:] = fresh[slot]
        working = asyncio.create_task(fill(log, memory) if is_read else log.send(b"", memory))
        for _ in range(draw.randrange(5)):
            await asyncio.sleep(draw.choice((0, 0, 0.0002)))
        working.cancel()
        [result] = await asyncio.gather(working, return_exceptions=True)
        assert result is None or isinstance(result, asyncio.CancelledError)
        if result is None and is_read:
            assert memory.view() == body
        await log.quiet()
        slots[slot][:] = fresh[slot]
        await asyncio.sleep(0)
        assert slots[slot] == fresh[slot]
        if result is not None or not is_read:
            cancelled += result is not None
            log.abort()
            log = None
    assert all(slot == pattern for slot, pattern in zip(slots[:2], fresh, strict=False))
    assert cancelled > ROUNDS // 10
    if log is not None:
        await log.aclose()


async def test_the_same_finds_what_a_disk_writes_late(tmp_path, monkeypatch):
    """Without waiting for quiet() memory changes after it was given away."""
    async with await connect(f"file://{tmp_path}/log", deadline_s=10) as log:
        await log.send(b"", Region.of(bytes(1000)))
        may_read = threading.Event()
        read = log._read
        monkeypatch.setattr(log, "_read", lambda *args: (may_read.wait(10), read(*args)))
        memory = bytearray(1000)
        filling = asyncio.create_task(fill(log, Region.of(memory)))
        while log._record is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        filling.cancel()
        await asyncio.wait([filling])
        assert filling.cancelled()
        memory[:] = b"\xab" * 1000
        may_read.set()
        await log.quiet()
        assert memory == bytes(1000)


async def fill(channel, memory: Region) -> None:
    incoming = await channel.receive()
    await incoming.into(memory)
