"""Each fault does what it says, in virtual time, and the same seed brings the same faults."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from dvrt.buffers import Region
from dvrt.errors import PeerLost, TransferTimeout
from dvrt.transport import get_transport
from dvrt.transport.conformance import open_pair
from dvrt.transport.faults import Direction, Fault, FaultKind, RandomFaults
from dvrt.transport.faulty import FaultyTransport

pytestmark = pytest.mark.virtual


@asynccontextmanager
async def faulty_pair(*faults: Fault):
    """A sender with faults and the plain receiver behind it, or the other way round."""
    local = get_transport("local")
    async with open_pair(local, "local://") as (a, b):
        if faults and faults[0].direction is Direction.RECEIVE:
            yield a, FaultyTransport(local, faults).wrap(b)
        else:
            yield FaultyTransport(local, faults).wrap(a), b


async def send(channel, number: int, body: bytes = b"body") -> None:
    await channel.send(b"%d" % number, Region.of(body), deadline_s=100)


async def receive(channel, deadline_s: float = 100) -> tuple[bytes, list[bytearray]]:
    incoming = await channel.receive(deadline_s=deadline_s)
    return incoming.header, await incoming.take(deadline_s=deadline_s)


@pytest.mark.parametrize("direction", Direction)
async def test_drop(direction):
    async with faulty_pair(Fault(kind=FaultKind.DROP, message=1, direction=direction)) as (a, b):
        for number in range(3):
            await send(a, number)
        assert [(await receive(b))[0] for _ in range(2)] == [b"0", b"2"]
        with pytest.raises(TransferTimeout):
            await receive(b, deadline_s=5)


@pytest.mark.parametrize("direction", Direction)
async def test_delay_keeps_the_order(direction):
    fault = Fault(kind=FaultKind.DELAY, message=0, direction=direction, seconds=30.0)
    async with faulty_pair(fault) as (a, b):
        loop = asyncio.get_running_loop()
        start = loop.time()
        sending = asyncio.create_task(send(a, 0))
        assert (await receive(b))[0] == b"0"
        assert loop.time() - start == pytest.approx(30, abs=0.1)
        await sending
        await send(a, 1)
        assert (await receive(b))[0] == b"1"
        assert loop.time() - start == pytest.approx(30, abs=0.1)


async def test_a_receive_that_ends_during_a_delay_loses_nothing():
    fault = Fault(kind=FaultKind.DELAY, direction=Direction.RECEIVE, seconds=30.0)
    async with faulty_pair(fault) as (a, b):
        await send(a, 0)
        with pytest.raises(TransferTimeout):
            await b.receive(deadline_s=10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(b.receive(), 10)
        assert await receive(b, deadline_s=15) == (b"0", [b"body"])


@pytest.mark.parametrize("direction", Direction)
async def test_stall(direction):
    async with faulty_pair(Fault(kind=FaultKind.STALL, message=1, direction=direction)) as (a, b):
        await send(a, 0)
        await receive(b)
        if direction is Direction.SEND:
            with pytest.raises(TransferTimeout):
                await a.send(b"stalled", deadline_s=60)
            with pytest.raises(PeerLost):
                await receive(b)
        else:
            await send(a, 1)
            for _ in range(3):
                with pytest.raises(TransferTimeout):
                    await b.receive(deadline_s=60)


async def test_a_stalled_call_ends_when_the_channel_is_aborted():
    from dvrt.errors import ChannelClosed

    async with faulty_pair(Fault(kind=FaultKind.STALL)) as (a, _b):
        sending = asyncio.create_task(a.send(b"stalled"))
        await asyncio.sleep(1)
        a.abort()
        with pytest.raises(ChannelClosed):
            await sending


async def test_half_open():
    async with faulty_pair(Fault(kind=FaultKind.HALF_OPEN, message=1)) as (a, b):
        await send(a, 0)
        await receive(b)
        for number in range(1, 4):
            await send(a, number)
        await send(b, 9)
        for channel in (a, b):
            with pytest.raises(TransferTimeout):
                await channel.receive(deadline_s=60)


@pytest.mark.parametrize("byte", [0, 3])
async def test_cut_while_sending_moves_nothing(byte):
    async with faulty_pair(Fault(kind=FaultKind.CUT, message=1, byte=byte)) as (a, b):
        await send(a, 0)
        await receive(b)
        with pytest.raises(PeerLost, match="cut on purpose"):
            await send(a, 1)
        with pytest.raises(PeerLost):
            await receive(b)


@pytest.mark.parametrize(("byte", "filled"), [(1, 0), (4, 3), (9, 8)])
async def test_cut_while_receiving_leaves_the_first_bytes(byte, filled):
    fault = Fault(kind=FaultKind.CUT, direction=Direction.RECEIVE, byte=byte)
    async with faulty_pair(fault) as (a, b):
        await send(a, 0, b"\xff" * 10)
        incoming = await b.receive(deadline_s=1)
        memory = bytearray(10)
        with pytest.raises(PeerLost, match="cut on purpose"):
            await incoming.into(Region.of(memory), deadline_s=1)
        await b.quiet()
        assert memory == b"\xff" * filled + bytes(10 - filled)


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("byte", [0, 1, 2, 10, 12])
async def test_flip_changes_one_bit_of_a_copy(direction, byte):
    fault = Fault(kind=FaultKind.FLIP, direction=direction, byte=byte, bit=3)
    original = bytearray(range(10))
    async with faulty_pair(fault) as (a, b):
        await a.send(b"h!", Region.of(original), deadline_s=1)
        header, parts = await receive(b)
    assert original == bytes(range(10))
    expected = bytearray(b"h!") + original
    expected[byte % 12] ^= 8
    assert header + parts[0] == expected


async def test_the_same_seed_brings_the_same_faults():
    rates = {FaultKind.DROP: 0.1, FaultKind.FLIP: 0.2}
    drawn = [
        [RandomFaults(seed=seed, rates=rates).fault(0, Direction.SEND, i) for i in range(2000)]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    kinds = Counter(None if fault is None else fault.kind for fault in drawn[0])
    assert kinds[FaultKind.DROP] / 2000 == pytest.approx(0.1, abs=0.03)
    assert kinds[FaultKind.FLIP] / 2000 == pytest.approx(0.2, abs=0.03)
    with pytest.raises(ValueError, match="at most 1"):
        RandomFaults(seed=1, rates={FaultKind.DROP: 1.5})


async def test_random_faults_over_a_listener():
    plan = RandomFaults(seed=3, rates={FaultKind.DROP: 0.5})
    faulty = FaultyTransport(get_transport("local"), plan)
    expected = [i for i in range(100) if plan.fault(0, Direction.SEND, i) is None]
    async with open_pair(faulty, "local://") as (a, b):
        for number in range(100):
            await a.send(b"%d" % number)
        got = [int((await b.receive(deadline_s=1)).header) for _ in expected]
    assert got == expected
