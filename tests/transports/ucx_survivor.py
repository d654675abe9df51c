"""A process whose peers over ucx are killed, and which has to go on; a program of its own.

What a peer leaves half done when it is killed may hold UCX's files until the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dvrt.buffers import Region
from dvrt.errors import ConnectFailed, PeerLost, TransferTimeout
from dvrt.transport import connect, ucx_link
from dvrt.transport.ucx_worker import worker_of_loop

spec = importlib.util.spec_from_file_location("transport_peer", Path(__file__).with_name("peer.py"))
peer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peer)

ADDRESS = "ucx://127.0.0.1:0"
HUGE_BYTES = 64 << 20
SOON_S = 2.0
KILLS = 6


@contextlib.contextmanager
def lost_soon() -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except PeerLost:
        assert time.monotonic() - began < SOON_S
        return
    raise AssertionError("the peer was not missed")


async def echo(channel, body: bytes) -> None:
    sending = asyncio.create_task(channel.send(b"echo", Region.of(body), deadline_s=5))
    try:
        incoming = await channel.receive(deadline_s=5)
        assert await incoming.take(deadline_s=5) == [body]
        await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def use(channel, behaviour: str, memory: bytearray) -> None:
    while True:
        if behaviour == peer.SOURCE:
            await (await channel.receive()).into(Region.of(memory))
        elif behaviour == peer.ECHO:
            await echo(channel, bytes(1_000_000))
        else:
            await channel.send(b"", Region.of(memory))


async def stays_as_it_is(memory: bytearray) -> None:
    memory[:] = b"\x55" * len(memory)
    await asyncio.sleep(0.05)
    assert memory.count(0x55) == len(memory)


async def one_is_killed(behaviour: str, delay_s: float) -> None:
    with peer.running_peer(ADDRESS, behaviour) as other:
        channel = await connect(other.address, deadline_s=10)
        memory = bytearray(HUGE_BYTES)
        using = asyncio.create_task(use(channel, behaviour, memory))
        await asyncio.sleep(delay_s)
        assert not using.done()
        other.kill()
        with lost_soon():
            await using
        await asyncio.wait_for(channel.quiet(), 10)
        await stays_as_it_is(memory)
        other.process.wait(10)
        try:
            await connect(other.address, deadline_s=10)
        except ConnectFailed:
            await channel.aclose()
        else:
            raise AssertionError("somebody listens at a dead peer's port")


async def killed() -> None:
    """Whatever they were at; others are reached as before, by a new channel if need be."""
    draw = random.Random(1)
    with peer.running_peer(ADDRESS, peer.ECHO) as survivor:
        channel = await connect(survivor.address, deadline_s=10)
        for number in range(KILLS):
            behaviour = (peer.SOURCE, peer.SINK, peer.ECHO, peer.SILENT)[number % 4]
            await one_is_killed(behaviour, 0.05 + 0.05 * draw.random())
            try:
                await echo(channel, bytes(range(256)) * 4000)
            except PeerLost:
                await channel.quiet()
                channel = await connect(survivor.address, deadline_s=10)
                await echo(channel, bytes(range(256)) * 4000)
        await channel.aclose()


async def elsewhere() -> None:
    """The same when it looks as if the peers were on other hosts; wants UCX_TLS=tcp,self."""
    ucx_link.this_host = lambda: b"another host 123"
    await killed()


async def stopped() -> None:
    """What was granted to a stopped peer is kept from us until the peer goes on, or is dead."""
    for end in ("resume", "kill"):
        with peer.running_peer(ADDRESS, peer.SOURCE) as other:
            channel = await connect(other.address, deadline_s=10)
            incoming = await channel.receive(deadline_s=10)
            other.stop()
            memory = bytearray(HUGE_BYTES)
            for expected, waiting in (
                (TransferTimeout, incoming.into(Region.of(memory), deadline_s=0.1)),
                (TimeoutError, asyncio.wait_for(channel.quiet(), 0.3)),
            ):
                try:
                    await waiting
                except expected:
                    continue
                raise AssertionError(f"expected {expected}")
            other.resume() if end == "resume" else other.kill()
            await asyncio.wait_for(channel.quiet(), 10)
            await stays_as_it_is(memory)
            await channel.aclose()


async def blocked() -> None:
    """A worker that a dead peer left blocked is given up; the next one works."""
    with peer.running_peer(ADDRESS, peer.ECHO) as survivor:
        channel = await connect(survivor.address, deadline_s=10)
        await echo(channel, bytes(1_000_000))
        worker = await worker_of_loop()
        worker._worker = Restless(worker._worker)
        with peer.running_peer(ADDRESS, peer.ECHO) as other:
            lost = await connect(other.address, deadline_s=10)
            await echo(lost, bytes(1_000_000))
            other.kill()
            with lost_soon():
                await lost.receive()
        with lost_soon():
            while True:
                await echo(channel, bytes(1_000_000))
        assert worker.is_stuck
        await asyncio.wait_for(asyncio.gather(channel.quiet(), lost.quiet()), 10)
        channel = await connect(survivor.address, deadline_s=10)
        assert await worker_of_loop() is not worker
        await echo(channel, bytes(1_000_000))
        await channel.aclose()


class Restless:
    """A worker that never goes to sleep."""

    def __init__(self, worker) -> None:
        self._worker = worker

    def __getattr__(self, name: str):
        return getattr(self._worker, name)

    def arm(self) -> bool:
        return False


def main() -> None:
    scenario, loop_kind = sys.argv[1:]
    factory = asyncio.new_event_loop
    if loop_kind == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(globals()[scenario]())


if __name__ == "__main__":
    main()
