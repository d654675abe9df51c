"""Handlers that fail, end, or never start: their channels are let go."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.errors import PeerLost
from dvrt.transport import Channel, connect, listen

ADDRESSES = ["local://", "tcp://127.0.0.1:0", "shm://"]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_handler_that_is_cancelled_lets_its_channel_go(address, loop_kind):
    tasks: list[asyncio.Task[None]] = []

    async def handler(channel: Channel) -> None:
        tasks.append(asyncio.current_task())
        await channel.receive()

    async with await listen(address, handler) as listener:
        async with await connect(listener.address, deadline_s=5) as channel:
            while not tasks:
                await asyncio.sleep(0.001)
            tasks[0].cancel()
            with pytest.raises(PeerLost):
                await channel.receive(deadline_s=5)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_loop_that_ends_at_once_leaves_nothing(address):
    """The handler's task is cancelled before its first step; warnings are errors here."""

    async def main() -> None:
        async def handler(channel: Channel) -> None:
            await channel.receive()

        listener = await listen(address, handler)
        before = asyncio.all_tasks()
        opening = asyncio.create_task(connect(listener.address, deadline_s=5))
        while not asyncio.all_tasks() - before - {opening} and not opening.done():
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - before - {opening}:
            task.cancel()
        opening.cancel()
        [result] = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(result, Channel):
            result.abort()
        await listener.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_unexpected_error_is_reported_to_the_loop(address):
    reports: list[dict[str, object]] = []

    async def handler(channel: Channel) -> None:
        await channel.receive()
        raise ZeroDivisionError("a bug")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        async with await listen(address, handler) as listener:
            async with await connect(listener.address, deadline_s=5) as channel:
                await channel.send(b"go")
                with pytest.raises(PeerLost):
                    await channel.receive(deadline_s=5)

    asyncio.run(main())
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
