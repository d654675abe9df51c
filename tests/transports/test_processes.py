"""What the survivor sees when its peer, a process, is killed, stopped or resumed."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from pathlib import Path

import pytest

from dvrt.buffers import Region
from dvrt.errors import ConnectFailed, PeerLost, TransferTimeout

spec = importlib.util.spec_from_file_location("transport_peer", Path(__file__).with_name("peer.py"))
peer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peer)

connect = peer.connect
ADDRESSES = {"tcp": "tcp://127.0.0.1:0", "shm": "shm://"}
UCX = [pytest.mark.ucx, pytest.mark.timeout(120)]
HUGE_BYTES = 64 << 20
SOON_S = 1.0


@pytest.fixture(params=ADDRESSES)
def address(request) -> str:
    return ADDRESSES[request.param]


@pytest.fixture(params=[*ADDRESSES, pytest.param("ucx", marks=UCX)])
def any_address(request) -> str:
    """``test_ucx_processes`` has what ucx needs a process of its own for."""
    return {**ADDRESSES, "ucx": "ucx://127.0.0.1:0"}[request.param]


async def echo(channel, header: bytes, body: bytes) -> None:
    sending = asyncio.create_task(channel.send(header, Region.of(body), deadline_s=20))
    incoming = await channel.receive(deadline_s=20)
    assert (incoming.header, await incoming.take(deadline_s=20)) == (header, [body])
    await sending


async def echo_works(address: str) -> None:
    async with await connect(address, deadline_s=10) as channel:
        await echo(channel, b"still", b"there")
        await echo(channel, b"still", b"there" * 20_000)


async def test_echo_between_processes(any_address, loop_kind):
    body = bytes(range(256)) * 40_000
    with peer.running_peer(any_address, peer.ECHO) as other:
        async with await connect(other.address, deadline_s=10) as channel:
            for _ in range(3):
                await echo(channel, b"big", body)


async def test_killed_while_we_send(address, loop_kind):
    with peer.running_peer(address, peer.SILENT) as other:
        channel = await connect(other.address, deadline_s=10)
        sending = asyncio.create_task(channel.send(b"", Region.of(bytes(HUGE_BYTES))))
        await asyncio.sleep(0.05)
        killed_at = time.monotonic()
        other.kill()
        with pytest.raises(PeerLost):
            await sending
        assert time.monotonic() - killed_at < SOON_S
        await asyncio.wait_for(channel.quiet(), 10)
        other.process.wait(10)
        with pytest.raises(ConnectFailed):
            await connect(other.address, deadline_s=10)
        await channel.aclose()


async def test_killed_while_we_receive(address, loop_kind):
    with peer.running_peer(address, peer.SOURCE) as other:
        channel = await connect(other.address, deadline_s=10)
        killed_at = None
        with pytest.raises(PeerLost):
            while True:
                incoming = await channel.receive(deadline_s=10)
                await incoming.take(deadline_s=10)
                if killed_at is None:
                    killed_at = time.monotonic()
                    other.kill()
        assert time.monotonic() - killed_at < SOON_S + 1
        await asyncio.wait_for(channel.quiet(), 10)
        await channel.aclose()


async def test_killed_while_we_wait(address):
    with peer.running_peer(address, peer.SILENT) as other:
        channel = await connect(other.address, deadline_s=10)
        receiving = asyncio.create_task(channel.receive())
        await asyncio.sleep(0.05)
        killed_at = time.monotonic()
        other.kill()
        with pytest.raises(PeerLost):
            await receiving
        assert time.monotonic() - killed_at < SOON_S
        await channel.aclose()


async def test_stopped_and_resumed(any_address, loop_kind):
    with peer.running_peer(any_address, peer.ECHO) as other:
        await echo_works(other.address)
        channel = await connect(other.address, deadline_s=10)
        other.stop()
        with pytest.raises(TransferTimeout):
            await channel.send(b"", Region.of(bytes(HUGE_BYTES)), deadline_s=0.2)
        await asyncio.wait_for(channel.quiet(), 10)
        with pytest.raises(PeerLost):
            await channel.send(b"", deadline_s=0.2)
        await channel.aclose()
        other.resume()
        await echo_works(other.address)


async def test_a_stopped_peer_that_is_resumed_in_time_loses_nothing(any_address):
    body = bytes(range(256)) * (HUGE_BYTES // 256)
    with peer.running_peer(any_address, peer.ECHO) as other:
        async with await connect(other.address, deadline_s=10) as channel:
            await echo(channel, b"first", body[: 1 << 20])
            other.stop()
            echoed = asyncio.create_task(echo(channel, b"", body))
            await asyncio.sleep(0.1)
            assert not echoed.done()
            other.resume()
            await echoed
