"""``auto`` finds the nearest way, says which, and falls back."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.errors import ConfigError, ConnectFailed
from dvrt.transport import Channel, connect, listen


async def hello(channel: Channel) -> None:
    await channel.send(b"hello")
    await channel.aclose()


async def way_to(address: str) -> str:
    async with await connect(address, deadline_s=5) as channel:
        assert (await channel.receive(deadline_s=5)).header == b"hello"
        return channel.peer.partition(":")[0]


async def test_the_nearest_way_is_taken(caplog, loop_kind):
    caplog.set_level("INFO", "dvrt.transport")
    async with await listen("auto://127.0.0.1:0", hello) as listener:
        assert await way_to(listener.address) == "local"
        plain, _, rest = listener.address.removeprefix("auto://").partition("/")
        token, _, where = rest.partition("@")
        assert await way_to(f"auto://{plain}") == "tcp"
        assert await way_to(f"auto://{plain}/{token}@0{where}") == "local"
        assert f"{listener.address}: by local" in caplog.text
        other_loop = asyncio.to_thread(asyncio.run, way_to(listener.address))
        assert await other_loop == "shm"
        elsewhere = way_to(f"auto://{plain}/{token}@0{where}")
        assert await asyncio.to_thread(asyncio.run, elsewhere) == "tcp"


async def test_shared_memory_that_cannot_be_reached_is_done_without():
    async with await listen("auto://127.0.0.1:0", hello) as listener:
        plain, _, rest = listener.address.removeprefix("auto://").partition("/")
        where = rest.partition("@")[2]
        assert await way_to(f"auto://{plain}/ffff@{where}") == "tcp"
    with pytest.raises(ConnectFailed):
        await connect(listener.address, deadline_s=1)


async def test_bad_addresses():
    for address in ("auto://", "auto://h:1/token", "auto://h:1/xyz@0"):
        with pytest.raises(ConfigError, match="expected auto://host:port"):
            await connect(address, deadline_s=1)
