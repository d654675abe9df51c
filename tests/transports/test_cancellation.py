"""A thousand cancelled transfers per transport: memory that is used again is never written to."""

from __future__ import annotations

import asyncio
import random

import pytest

from dvrt.buffers import Region
from dvrt.errors import PeerLost
from dvrt.transport import get_transport
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


async def fill(channel, memory: Region) -> None:
    incoming = await channel.receive()
    await incoming.into(memory)
