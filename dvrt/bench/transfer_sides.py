"""The sides that ``bench transfer`` compares; each moves a case some times and says how long."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dvrt.bench.transfer_cases import CASES, IN_FLIGHT, Case, Pool
from dvrt.bench.transfer_peer import HEADER, REPLY, SMALL_BYTES, SOCKET_HEADER, Kind
from dvrt.kv.digest import digest_of
from dvrt.transport import Channel

DEADLINE_S = 60.0
_SOCKET_BUFFERS = 1024

Side = Callable[[Case, int], float]
"""Seconds until the receiver has ``count`` transfers of a case."""


@dataclass(frozen=True, slots=True)
class Memcpy:
    """Within this process, chunk by chunk in C, into memory without gaps."""

    source: Pool
    target: Pool

    def __call__(self, case: Case, count: int) -> float:
        pairs = [
            (self._packed(case, slot), self.source.strided(case, slot))
            for slot in range(case.slots)
        ]
        began = time.monotonic()
        for i in range(count):
            np.copyto(*pairs[i % case.slots])
        return time.monotonic() - began

    def _packed(self, case: Case, slot: int) -> np.ndarray:
        rows = self.target.array[slot * case.nbytes : (slot + 1) * case.nbytes]
        return rows.reshape(case.chunks, case.chunk_bytes)


@dataclass(frozen=True, slots=True)
class RawSocket:
    """Blocking calls on a TCP connection to the peer's thread; nothing but bytes."""

    sock: socket.socket
    source: Pool

    def __call__(self, case: Case, count: int) -> float:
        began = time.monotonic_ns()
        self.sock.sendall(SOCKET_HEADER.pack(CASES.index(case), count))
        for i in range(count):
            self._send(list(self.source.views(case, i % case.slots)))
        ended, _ = REPLY.unpack(self.sock.recv(REPLY.size, socket.MSG_WAITALL))
        return float(ended - began) / 1e9

    def _send(self, views: list[memoryview]) -> None:
        while views:
            count = self.sock.sendmsg(views[:_SOCKET_BUFFERS])
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]


class ChannelSide:
    """A channel of dvrt's: at most IN_FLIGHT messages without an answer."""

    def __init__(self, runner: asyncio.Runner, channel: Channel, source: Pool, kind: Kind) -> None:
        self._runner, self._channel, self._source, self._kind = runner, channel, source, kind
        self._is_digesting = kind in (Kind.BORROW_DIGEST, Kind.INTO_DIGEST)

    def __call__(self, case: Case, count: int) -> float:
        return self._runner.run(self._stream(case, count))

    def ensure_right(self, case: Case) -> None:
        """Raise RuntimeError unless the receiver gets the bytes that were sent."""
        kind = (
            Kind.INTO_DIGEST
            if self._kind in (Kind.INTO, Kind.INTO_DIGEST)
            else (Kind.BORROW_DIGEST)
        )
        self._runner.run(self._check(case, kind))

    async def _check(self, case: Case, kind: Kind) -> None:
        regions = self._source.regions(case, 0)
        await self._channel.send(
            HEADER.pack(kind, CASES.index(case), 0), *regions, deadline_s=DEADLINE_S
        )
        _, found = REPLY.unpack((await self._channel.receive(deadline_s=DEADLINE_S)).header)
        if found != digest_of(region.view() for region in regions):
            raise RuntimeError(f"{case.name} over {self._channel.peer}: other bytes arrived")

    async def _stream(self, case: Case, count: int) -> float:
        window = asyncio.Semaphore(IN_FLIGHT)
        began = time.monotonic_ns()
        ended = began
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(case, count, window))
            for _ in range(count):
                answer = await self._channel.receive(deadline_s=DEADLINE_S)
                ended, _ = REPLY.unpack(answer.header)
                window.release()
        return (ended - began) / 1e9

    async def _send(self, case: Case, count: int, window: asyncio.Semaphore) -> None:
        number, slots = CASES.index(case), case.slots
        for i in range(count):
            await window.acquire()
            regions = self._source.regions(case, i % slots)
            if self._is_digesting:
                digest_of([region.view() for region in regions])
            header = HEADER.pack(self._kind, number, i % slots)
            await self._channel.send(header, *regions, deadline_s=DEADLINE_S)


def channel_trips(runner: asyncio.Runner, channel: Channel, count: int) -> float:
    """Seconds that a small message takes one way, with its answer the same way back."""

    async def trips() -> float:
        header = HEADER.pack(Kind.ECHO, 0, 0).ljust(SMALL_BYTES)
        began = time.monotonic()
        for _ in range(count):
            await channel.send(header, deadline_s=DEADLINE_S)
            await channel.receive(deadline_s=DEADLINE_S)
        return (time.monotonic() - began) / count / 2

    return runner.run(trips())


def socket_trips(runner: asyncio.Runner, pair: socket.socket, count: int) -> float:
    """The same over a bare socket, by the loop's own calls."""

    async def trips() -> float:
        loop = asyncio.get_running_loop()
        data = bytes(SMALL_BYTES)
        began = time.monotonic()
        for _ in range(count):
            await loop.sock_sendall(pair, data)
            await loop.sock_recv(pair, SMALL_BYTES)
        return (time.monotonic() - began) / count / 2

    return runner.run(trips())
