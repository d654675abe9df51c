"""A peer in a process of its own, for tests that kill, stop and resume it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dvrt.buffers import Region
from dvrt.transport import Channel, Transport, get_transport
from dvrt.transport.registry import split_address
from dvrt.transport.shm import ShmTransport

ECHO, SINK, SOURCE, SILENT = "echo", "sink", "source", "silent"


def transport_of(address: str) -> Transport:
    """Shared memory with a small arena, so that large transfers have to wait for the peer."""
    scheme, _ = split_address(address)
    return ShmTransport(arena_bytes=16 << 20) if scheme == "shm" else get_transport(scheme)


async def connect(address: str, *, deadline_s: float) -> Channel:
    return await transport_of(address).connect(address, deadline_s=deadline_s)


async def serve(address: str, behaviour: str) -> None:
    """Listen, print the address, and behave that way on every channel."""

    async def handler(channel: Channel) -> None:
        if behaviour == SILENT:
            await asyncio.sleep(3600)
        body = bytearray(64 << 20)
        while behaviour == SOURCE:
            await channel.send(b"more", Region.of(body))
        while True:
            incoming = await channel.receive()
            parts = await incoming.take()
            if behaviour == ECHO:
                await channel.send(incoming.header, *[Region.of(part) for part in parts])

    async with await transport_of(address).listen(address, handler) as listener:
        sys.stdout.write(listener.address + "\n")
        sys.stdout.flush()
        await asyncio.sleep(3600)


class Peer:
    """The process and the address it listens at."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process = process
        self.address = address

    def kill(self) -> None:
        self.process.kill()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_peer(address: str, behaviour: str) -> Iterator[Peer]:
    command = [sys.executable, __file__, address, behaviour]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, f"the peer ended with {process.wait(10)} before it listened"
            yield Peer(process, address)
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
