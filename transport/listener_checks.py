"""The promises of ``Transport`` and ``Listener``; a check gets a transport and a free address."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dvrt.errors import ConnectFailed, Corrupted, PeerLost
from dvrt.transport.base import Channel, Transport
from dvrt.transport.expecting import LIMIT_S, expect, expect_error, receive, send

ListenerCheck = Callable[[Transport, str], Awaitable[None]]


async def echo(channel: Channel) -> None:
    """Send back what comes until the peer is gone."""
    async with channel:
        while True:
            header, parts = await receive(channel)
            await send(channel, header, *parts)


async def check_many_clients(transport: Transport, address: str) -> None:
    async with await transport.listen(address, echo) as listener:

        async def talk(number: int) -> None:
            client = await transport.connect(listener.address, deadline_s=LIMIT_S)
            async with client:
                for turn in range(3):
                    await send(client, b"%d/%d" % (number, turn), b"x" * number)
                    answer = await receive(client)
                    expect(answer == (b"%d/%d" % (number, turn), [b"x" * number]), "mixed up")

        await asyncio.wait_for(asyncio.gather(*(talk(n) for n in range(20))), LIMIT_S)


async def check_failing_handler(transport: Transport, address: str) -> None:
    async def handler(channel: Channel) -> None:
        header, _ = await receive(channel)
        if header == b"fail":
            raise Corrupted("as asked", expected=1, got=2)
        await echo(channel)

    async with await transport.listen(address, handler) as listener:
        bad = await transport.connect(listener.address, deadline_s=LIMIT_S)
        good = await transport.connect(listener.address, deadline_s=LIMIT_S)
        async with bad, good:
            await send(bad, b"fail")
            with expect_error(PeerLost, when="the channel of a handler that failed"):
                await receive(bad)
            await send(good, b"first")
            await send(good, b"hello")
            expect(await receive(good) == (b"hello", []), "one handler harmed another")


async def check_close(transport: Transport, address: str) -> None:
    listener = await transport.listen(address, echo)
    client = await transport.connect(listener.address, deadline_s=LIMIT_S)
    async with client:
        await send(client, b"before")
        await receive(client)
        await listener.aclose()
        await listener.aclose()
        with expect_error(ConnectFailed, when="connecting after the listener closed"):
            await transport.connect(listener.address, deadline_s=0.5)
        await send(client, b"after")
        expect(await receive(client) == (b"after", []), "closing the listener harmed a channel")


async def check_address_again(transport: Transport, address: str) -> None:
    async with await transport.listen(address, echo) as listener:
        with expect_error(ConnectFailed, when="listening at a taken address"):
            await transport.listen(listener.address, echo)
    async with await transport.listen(listener.address, echo) as again:
        expect(again.address == listener.address, "an address given by hand was changed")
        async with await transport.connect(again.address, deadline_s=LIMIT_S) as client:
            await send(client, b"again")
            expect(await receive(client) == (b"again", []), "the second listener does not work")


LISTENER_CHECKS: tuple[ListenerCheck, ...] = (
    check_many_clients,
    check_failing_handler,
    check_close,
    check_address_again,
)
