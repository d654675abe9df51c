"""The receiving process of ``bench transfer``: takes what comes, and says when it was there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from dvrt.bench.transfer_cases import CASES, Pool
from dvrt.kv.digest import digest_of
from dvrt.processes.worker_process import loop_factory
from dvrt.transport import Channel, listen

HEADER = struct.Struct("!BBH")
REPLY = struct.Struct("!qQ")
SOCKET_HEADER = struct.Struct("!HH")
SMALL_BYTES = 64
END_S = 30.0
_SOCKET_BUFFERS = 1024


class Kind(IntEnum):
    """What the receiver does with a message."""

    BORROW = 1
    INTO = 2
    BORROW_DIGEST = 3
    INTO_DIGEST = 4
    ECHO = 5


@dataclass(frozen=True, slots=True)
class Peer:
    """How to reach the receiving process: a channel's address by scheme, and two sockets."""

    addresses: dict[str, str]
    port: int
    pair: socket.socket


@contextlib.contextmanager
def open_peer(schemes: Sequence[str]) -> Iterator[Peer]:
    """Start the receiving process; it ends with the block. Raises RuntimeError if it cannot."""
    pair, theirs = socket.socketpair()
    with pair, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(theirs.fileno()), *schemes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
        )
        with process:
            try:
                told = process.stdout.readline()  # type: ignore[union-attr]
                if not told:
                    raise RuntimeError("the receiving process did not start")
                port, addresses = json.loads(told)
                yield Peer(addresses, port, pair)
            finally:
                process.stdin.close()  # type: ignore[union-attr]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
                process.kill()


def main() -> None:
    """The receiving process: until its stdin ends."""
    fd, *schemes = sys.argv[1:]
    pool = Pool()
    pair = socket.socket(fileno=int(fd))
    with pair, socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_take_stream, args=(server, pool), daemon=True).start()
        with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
            runner.run(_serve(pair, schemes, server.getsockname()[1], pool))


async def _serve(pair: socket.socket, schemes: Sequence[str], port: int, pool: Pool) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), over.set)

    async def take(channel: Channel) -> None:
        async with channel:
            await _take(channel, pool)

    async with contextlib.AsyncExitStack() as stack:
        addresses = {}
        for scheme in schemes:
            place = f"{scheme}://127.0.0.1:0" if scheme != "shm" else "shm://"
            listener = await stack.enter_async_context(await listen(place, take))
            addresses[scheme] = listener.address
        sys.stdout.write(json.dumps([port, addresses]) + "\n")
        sys.stdout.flush()
        echo = asyncio.create_task(_echo_pair(pair))
        await over.wait()
        echo.cancel()
    loop.remove_reader(sys.stdin.fileno())


async def _take(channel: Channel, pool: Pool) -> None:
    """Answer every message but those that are to be silent with the time at which it was there."""
    while True:
        incoming = await channel.receive()
        kind, number, slot = HEADER.unpack_from(incoming.header)
        if kind == Kind.ECHO:
            await channel.send(incoming.header)
            continue
        digest = 0
        if kind in (Kind.INTO, Kind.INTO_DIGEST):
            regions = pool.regions(CASES[number], slot)
            await incoming.into(*regions)
            if kind == Kind.INTO_DIGEST:
                digest = digest_of(region.view() for region in regions)
        else:
            with await incoming.borrow() as borrowed:
                views = borrowed.views
                if kind == Kind.BORROW_DIGEST:
                    digest = digest_of(views)
        await channel.send(REPLY.pack(time.monotonic_ns(), digest))


async def _echo_pair(pair: socket.socket) -> None:
    pair.setblocking(False)
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(pair, SMALL_BYTES):
        await loop.sock_sendall(pair, data)


def _take_stream(server: socket.socket, pool: Pool) -> None:
    """The raw loop: bytes into memory, and the time after the last."""
    sock, _ = server.accept()
    with sock:
        while header := sock.recv(SOCKET_HEADER.size, socket.MSG_WAITALL):
            number, count = SOCKET_HEADER.unpack(header)
            case = CASES[number]
            for i in range(count):
                _fill(sock, list(pool.views(case, i % case.slots)))
            sock.sendall(REPLY.pack(time.monotonic_ns(), 0))


def _fill(sock: socket.socket, views: list[memoryview]) -> None:
    first = 0
    while first < len(views):
        count = sock.recvmsg_into(views[first : first + _SOCKET_BUFFERS])[0]
        if not count:
            raise ConnectionResetError("the sender left")
        while first < len(views) and count >= len(views[first]):
            count -= len(views[first])
            first += 1
        if count:
            views[first] = views[first][count:]


if __name__ == "__main__":
    main()
