"""A receiver stays awake while messages come close to each other, and no longer."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.buffers import Region
from dvrt.transport import Channel
from dvrt.transport.conformance import open_pair
from dvrt.transport.polling import SUCCESSION_S, Polling
from dvrt.transport.shm import ShmTransport
from dvrt.transport.shm_channel import INLINE_BYTES

LIMIT_S = 20.0
"""For a machine that has other things to do; a moment is enough otherwise."""


class Clock:
    """Seconds, as the test has it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def _turns(polling: Polling) -> bool:
    """Whether it is still awake after the loop went round a few times."""
    for _ in range(3):
        await asyncio.sleep(0)
    return polling.is_awake


async def test_one_message_alone_is_no_reason(loop_kind):
    clock = Clock()
    polling = Polling(clock)
    polling.came()
    assert not await _turns(polling)
    clock.now += 2 * SUCCESSION_S
    polling.came()
    assert not await _turns(polling)


async def test_a_succession_keeps_the_loop_awake_until_it_ends(loop_kind):
    clock = Clock()
    polling = Polling(clock)
    for _ in range(5):
        polling.came()
        clock.now += SUCCESSION_S / 2
    assert await _turns(polling)
    clock.now += SUCCESSION_S
    assert not await _turns(polling)
    polling.came()
    assert not await _turns(polling)


async def test_nothing_is_left_of_one_that_is_closed(loop_kind):
    polling = Polling(Clock())
    polling.came()
    polling.came()
    assert polling.is_awake
    polling.close()
    polling.close()
    assert not await _turns(polling)


async def _burst(sender: Channel, receiver: Channel, way: str) -> None:
    """A few messages, all of them sent before the first is received."""
    for _ in range(4):
        await sender.send(b"", Region.of(bytes(INLINE_BYTES + 1)), deadline_s=LIMIT_S)
    for _ in range(4):
        incoming = await receiver.receive(deadline_s=LIMIT_S)
        received = await getattr(incoming, way)(deadline_s=LIMIT_S)
        if way == "borrow":
            received.release()


async def _burst_until_awake(sender: Channel, receiver: Channel, way: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not receiver._polling.is_awake:
            await _burst(sender, receiver, way)


@pytest.mark.parametrize("way", ["take", "borrow"])
async def test_a_channel_stays_awake_over_a_burst_and_no_longer(way, monkeypatch, loop_kind):
    monkeypatch.setattr("dvrt.transport.polling.SUCCESSION_S", 0.05)  # a busy machine is slow
    async with open_pair(ShmTransport(arena_bytes=1 << 20), "shm://") as (a, b):
        await _burst_until_awake(a, b, way)
        async with asyncio.timeout(LIMIT_S):
            while b._polling.is_awake:
                await asyncio.sleep(0.01)
        await _burst_until_awake(a, b, way)
        await b.aclose()
        assert not b._polling.is_awake
        assert not await _turns(b._polling)
