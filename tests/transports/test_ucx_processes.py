"""What the survivor of a ucx channel sees when its peer, a process, is killed, stopped or resumed.

``test_processes`` for the transport whose transfers nobody can take back.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dvrt.buffers import Region
from dvrt.errors import PeerLost, TransferTimeout
from dvrt.transport import connect

spec = importlib.util.spec_from_file_location("transport_peer", Path(__file__).with_name("peer.py"))
peer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peer)

pytestmark = [pytest.mark.ucx, pytest.mark.timeout(120)]
ADDRESS = "ucx://127.0.0.1:0"
HUGE_BYTES = 64 << 20
SURVIVOR = Path(__file__).with_name("ucx_survivor.py")


async def echo(channel, body: bytes) -> None:
    sending = asyncio.create_task(channel.send(b"echo", Region.of(body), deadline_s=20))
    incoming = await channel.receive(deadline_s=20)
    assert await incoming.take(deadline_s=20) == [body]
    await sending


async def echo_works(address: str) -> None:
    async with await connect(address, deadline_s=10) as channel:
        await echo(channel, b"still there" * 10_000)


async def test_echo_between_processes(loop_kind):
    body = bytes(range(256)) * 40_000
    with peer.running_peer(ADDRESS, peer.ECHO) as other:
        async with await connect(other.address, deadline_s=10) as channel:
            for _ in range(3):
                await echo(channel, body)


async def test_stopped_and_resumed(loop_kind):
    with peer.running_peer(ADDRESS, peer.ECHO) as other:
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


async def test_a_stopped_peer_that_is_resumed_in_time_loses_nothing():
    body = bytes(range(256)) * (HUGE_BYTES // 256)
    with peer.running_peer(ADDRESS, peer.ECHO) as other:
        async with await connect(other.address, deadline_s=10) as channel:
            await echo(channel, body[: 1 << 20])
            other.stop()
            sending = asyncio.create_task(channel.send(b"", Region.of(body), deadline_s=20))
            await asyncio.sleep(0.1)
            assert not sending.done()
            other.resume()
            incoming = await channel.receive(deadline_s=20)
            assert await incoming.take(deadline_s=20) == [body]
            await sending


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("killed", marks=pytest.mark.slow),
        pytest.param("elsewhere", marks=pytest.mark.slow),
        "stopped",
        "blocked",
    ],
)
def test_survivor(scenario, kind):
    """See ``ucx_survivor``."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    if scenario == "elsewhere":
        environment["UCX_TLS"] = "tcp,self"
    command = [sys.executable, str(SURVIVOR), scenario, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
