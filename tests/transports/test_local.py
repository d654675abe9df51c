"""The in-process transport under virtual time: deterministic, bounded, separate per loop."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.buffers import Region
from dvrt.errors import ConnectFailed, TransferTimeout
from dvrt.transport import connect, get_transport, listen
from dvrt.transport.conformance import (
    CHANNEL_CHECKS,
    CLOGGED_CHECKS,
    LISTENER_CHECKS,
    open_pair,
    run_channel_check,
    run_listener_check,
)
from dvrt.transport.local import WINDOW_BYTES, WINDOW_MESSAGES


@pytest.mark.virtual
async def test_conformance_in_virtual_time():
    local = get_transport("local")
    for check in (*CHANNEL_CHECKS, *CLOGGED_CHECKS):
        await run_channel_check(check, lambda: open_pair(local, "local://"))
    for listener_check in LISTENER_CHECKS:
        await run_listener_check(listener_check, local, "local://")


@pytest.mark.virtual
async def test_deadlines_follow_virtual_time():
    async with open_pair(get_transport("local"), "local://") as (a, _b):
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(TransferTimeout):
            await a.receive(deadline_s=3600)
        assert loop.time() - start == pytest.approx(3600)


async def fill_up(channel, size: int) -> int:
    """How many messages of this size are taken in before a send waits."""
    body, count = Region.of(bytes(size)), 0
    while True:
        sending = asyncio.create_task(channel.send(b"", body))
        await asyncio.sleep(0)
        if not sending.done():
            sending.cancel()
            return count
        count += 1


@pytest.mark.parametrize(
    ("size", "count"), [(0, WINDOW_MESSAGES), (1000, WINDOW_BYTES // 1000), (WINDOW_BYTES, 1)]
)
async def test_the_window_is_exact(size, count):
    async with open_pair(get_transport("local"), "local://") as (a, _b):
        assert await fill_up(a, size) == min(count, WINDOW_MESSAGES)


async def test_a_lent_message_is_never_read_after_its_send_ended():
    async with open_pair(get_transport("local"), "local://") as (a, b):
        memory = bytearray(2 * WINDOW_BYTES)
        sending = asyncio.create_task(a.send(b"", Region.of(memory)))
        incoming = await b.receive(deadline_s=1)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        target = bytearray(b"\x11" * len(memory))
        with pytest.raises(Exception, match="gave up"):
            await incoming.into(Region.of(target))
        assert target.count(0x11) == len(target)


def test_two_loops_do_not_see_each_other():
    async def there() -> None:
        with pytest.raises(ConnectFailed, match="nobody listens at local://name"):
            await connect("local://name", deadline_s=1)

    async def here() -> None:
        async with await listen("local://name", None):
            await asyncio.to_thread(asyncio.run, there())

    asyncio.run(here())


async def test_names_are_picked_in_order():
    async with await listen("local://auto-2", None):
        async with await listen("local://", None) as first, await listen("local://", None) as next_:
            assert (first.address, next_.address) == ("local://auto-1", "local://auto-3")
