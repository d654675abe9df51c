"""A thousand cancelled transfers over ucx: memory that is used again is never written to."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from pathlib import Path

import pytest

from dvrt.buffers import Region
from dvrt.errors import ChannelClosed, PeerLost
from dvrt.transport import connect, get_transport
from dvrt.transport.conformance import open_pair

spec = importlib.util.spec_from_file_location("transport_peer", Path(__file__).with_name("peer.py"))
peer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peer)

pytestmark = pytest.mark.ucx
ADDRESS = "ucx://127.0.0.1:0"
ROUNDS = 460
ROUNDS_BETWEEN_PROCESSES = 40
ENDS = asyncio.CancelledError | PeerLost | ChannelClosed
SLOTS, SLOT_BYTES = 4, 1_200_000


async def test_no_late_write(loop_kind):
    """Slots are quarantined until quiet() and leased again at once, with a new pattern."""
    draw = random.Random(11)
    transport = get_transport("ucx")
    slots = [bytearray(SLOT_BYTES) for _ in range(SLOTS)]
    fresh = [bytes([0x40 + i]) * SLOT_BYTES for i in range(SLOTS)]
    cancelled = 0
    for number in range(ROUNDS):
        slot = number % SLOTS
        async with open_pair(transport, ADDRESS) as (a, b):
            body = bytes([number % 64]) * draw.choice((10, 300_000, SLOT_BYTES))
            memory = Region.of(memoryview(slots[slot])[: len(body)])
            sending = asyncio.create_task(a.send(b"", Region.of(body)))
            filling = asyncio.create_task(fill(b, memory))
            for _ in range(draw.randrange(12)):
                await asyncio.sleep(0)
            tasks = [sending, filling]
            draw.shuffle(tasks)
            for task in tasks[: draw.choice((1, 2, 2))]:
                task.cancel()
            await asyncio.wait(tasks, timeout=draw.choice((0, 0.002)))
            a.abort()
            b.abort()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                assert result is None or isinstance(result, ENDS), result
            cancelled += any(isinstance(result, asyncio.CancelledError) for result in results)
            await asyncio.wait_for(b.quiet(), 10)
            await asyncio.wait_for(a.quiet(), 10)
            slots[slot][:] = fresh[slot]
            if number >= SLOTS:
                assert slots[(number + 1) % SLOTS] == fresh[(number + 1) % SLOTS]
            await asyncio.sleep(0)
            assert slots[slot] == fresh[slot]
    assert cancelled > ROUNDS // 10


async def test_no_late_write_from_another_process(loop_kind):
    """The same with a peer that does not know of the cancelling, and sends on for a while."""
    draw = random.Random(12)
    memory, fresh = bytearray(peer_bytes()), b"\x55" * peer_bytes()
    with peer.running_peer(ADDRESS, peer.SOURCE) as other:
        for _ in range(ROUNDS_BETWEEN_PROCESSES):
            channel = await connect(other.address, deadline_s=10)
            filling = asyncio.create_task(fill(channel, Region.of(memory)))
            await asyncio.sleep(draw.random() * 0.01)
            filling.cancel()
            [result] = await asyncio.gather(filling, return_exceptions=True)
            assert result is None or isinstance(result, asyncio.CancelledError)
            channel.abort()
            await asyncio.wait_for(channel.quiet(), 10)
            memory[: 1 << 20] = fresh[: 1 << 20]
            memory[-1 << 20 :] = fresh[: 1 << 20]
            await asyncio.sleep(0.001)
            assert memory.count(0x55) == 2 << 20


async def test_the_same_finds_what_is_written_late():
    """Without waiting for quiet() memory changes after it was given away."""
    memory = bytearray(peer_bytes())
    with peer.running_peer(ADDRESS, peer.SOURCE) as other:
        for _ in range(50):
            channel = await connect(other.address, deadline_s=10)
            filling = asyncio.create_task(fill(channel, Region.of(memory)))
            while not channel._link._receives:
                await asyncio.sleep(0)
            filling.cancel()
            await asyncio.wait([filling])
            memory[:] = b"\x55" * len(memory)
            await asyncio.wait_for(channel.quiet(), 10)
            if memory.count(0x55) < len(memory):
                return
    raise AssertionError("nothing was written late; is there anything to wait for?")


def peer_bytes() -> int:
    """The size of the message that a SOURCE sends again and again."""
    return 64 << 20


async def fill(channel, memory: Region) -> None:
    incoming = await channel.receive()
    await incoming.into(memory)
