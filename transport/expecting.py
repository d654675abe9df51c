"""What the conformance checks are written with; works under ``python -O`` and without pytest."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from dvrt.buffers import Region
from dvrt.transport.base import Channel, Transport

LIMIT_S = 20.0
"""No single step of a check may take longer; far above what any of them needs."""

HUGE_BYTES = 64 << 20
"""More than any transport takes in before the peer receives."""

Pair = tuple[Channel, Channel]
MakePair = Callable[[], AbstractAsyncContextManager[Pair]]


def expect(condition: object, message: str) -> None:
    """Raise AssertionError unless the condition holds."""
    if not condition:
        raise AssertionError(message)


@contextlib.contextmanager
def expect_error(*kinds: type[BaseException], when: str) -> Iterator[None]:
    """The block must raise one of these errors."""
    try:
        yield
    except kinds:
        return
    names = " or ".join(kind.__name__ for kind in kinds)
    raise AssertionError(f"{when}: expected {names}, nothing was raised")


async def settle(rounds: int = 50) -> None:
    """Let every other task go as far as it can without waiting for the outside."""
    for _ in range(rounds):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that is started, and is over when the block is left."""
    task = asyncio.get_running_loop().create_task(work)
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def result_of(task: asyncio.Task[Any]) -> Any:
    """What a task returns or raises, within LIMIT_S."""
    return await asyncio.wait_for(task, LIMIT_S)


async def send(channel: Channel, header: bytes, *parts: bytes | bytearray) -> None:
    await channel.send(header, *[Region.of(part) for part in parts], deadline_s=LIMIT_S)


async def receive(channel: Channel) -> tuple[bytes, list[bytes]]:
    incoming = await channel.receive(deadline_s=LIMIT_S)
    return incoming.header, [bytes(part) for part in await incoming.take(deadline_s=LIMIT_S)]


def pattern(size: int, seed: int) -> bytes:
    """Bytes in which a piece that is lost, repeated or misplaced shows."""
    block = random.Random(seed).randbytes(min(size, 65_521))
    return (block * (size // max(1, len(block)) + 1))[:size]


@contextlib.asynccontextmanager
async def open_pair(transport: Transport, address: str) -> AsyncIterator[Pair]:
    """A connected pair of ``transport``: the client's end and the accepted one."""
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

    async def handler(channel: Channel) -> None:
        accepted.set_result(channel)

    async with await transport.listen(address, handler) as listener:
        client = await transport.connect(listener.address, deadline_s=LIMIT_S)
        server = None
        try:
            server = await asyncio.wait_for(accepted, LIMIT_S)
            yield client, server
        finally:
            for channel in (client, server):
                if channel is not None:
                    channel.abort()
                    await channel.quiet()
