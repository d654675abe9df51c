"""The promises of ``Channel`` about its end: cancelled, late, aborted, closed, peer gone."""

from __future__ import annotations

import asyncio

from dvrt.buffers import Region
from dvrt.errors import ChannelClosed, PeerLost, TransferTimeout
from dvrt.transport.expecting import (
    HUGE_BYTES,
    LIMIT_S,
    Pair,
    expect,
    expect_error,
    pattern,
    receive,
    result_of,
    running,
    send,
)


async def check_cancelled_into(pair: Pair) -> None:
    a, b = pair
    memory = bytearray(HUGE_BYTES)
    async with running(send(a, b"", bytes(HUGE_BYTES))) as sending:
        incoming = await b.receive(deadline_s=LIMIT_S)
        async with running(incoming.into(Region.of(memory))) as filling:
            if filling.done():
                return
            filling.cancel()
            with expect_error(asyncio.CancelledError, when="a cancelled into"):
                await result_of(filling)
        await asyncio.wait_for(b.quiet(), LIMIT_S)
        memory[:] = b"\x55" * HUGE_BYTES
        with expect_error(PeerLost, when="a receive after a cancelled one"):
            await b.receive(deadline_s=LIMIT_S)
        if not sending.done():
            with expect_error(PeerLost, when="the sender of a cancelled transfer"):
                await result_of(sending)
    expect(memory.count(0x55) == HUGE_BYTES, "memory was written to after quiet had returned")


async def check_cancelled_send(pair: Pair) -> None:
    a, b = pair
    async with running(send(a, b"", bytes(HUGE_BYTES))) as sending:
        expect(not sending.done(), f"{HUGE_BYTES} bytes were sent with nobody receiving")
        sending.cancel()
        with expect_error(asyncio.CancelledError, when="a cancelled send"):
            await result_of(sending)
    await asyncio.wait_for(a.quiet(), LIMIT_S)
    with expect_error(PeerLost, when="a send after a cancelled one"):
        await send(a, b"more")
    with expect_error(PeerLost, when="receiving what was cancelled"):
        await receive(b)
    with expect_error(PeerLost, when="a second receive"):
        await receive(b)


async def check_close_while_sending(pair: Pair) -> None:
    """The peer learns that the message will not come, and does not take the goodbye for it."""
    a, b = pair
    async with running(send(a, b"", bytes(HUGE_BYTES))) as sending:
        incoming = await b.receive(deadline_s=LIMIT_S)
        if sending.done():
            return
        await asyncio.wait_for(a.aclose(), LIMIT_S)
        with expect_error(ChannelClosed, when="a send while its channel is closed"):
            await result_of(sending)
        with expect_error(PeerLost, when="the receiver of what was cut short"):
            await incoming.into(Region.of(bytearray(HUGE_BYTES)), deadline_s=LIMIT_S)


async def check_send_deadline(pair: Pair) -> None:
    a, b = pair
    with expect_error(TransferTimeout, when="a send that nobody receives"):
        await a.send(b"", Region.of(bytes(HUGE_BYTES)), deadline_s=0.05)
    await asyncio.wait_for(a.quiet(), LIMIT_S)
    with expect_error(PeerLost, when="a send after one that timed out"):
        await send(a, b"more")
    with expect_error(PeerLost, when="receiving what timed out"):
        await receive(b)


async def check_abort(pair: Pair) -> None:
    a, b = pair
    huge = bytes(HUGE_BYTES)
    async with running(a.receive()) as receiving, running(send(a, b"", huge)) as sending:
        async with running(b.receive()) as peer_receiving:
            a.abort()
            a.abort()
            with expect_error(ChannelClosed, when="a receive pending at abort"):
                await result_of(receiving)
            with expect_error(ChannelClosed, when="a send pending at abort"):
                await result_of(sending)
            await asyncio.wait_for(a.quiet(), LIMIT_S)
            with expect_error(PeerLost, when="the peer's transfer at abort"):
                await (await result_of(peer_receiving)).take(deadline_s=LIMIT_S)
    for call in (a.receive, lambda: a.send(b"")):
        with expect_error(ChannelClosed, when="a call after abort"):
            await call()
    await asyncio.wait_for(a.aclose(), LIMIT_S)
    with expect_error(PeerLost, when="a send to an aborted peer"):
        while True:
            await b.send(b"x" * 1000, deadline_s=LIMIT_S)


async def check_close_flushes(pair: Pair) -> None:
    a, b = pair
    parts = [pattern(10_000, i) for i in range(5)]
    for part in parts:
        await send(a, b"last words", part)
    await send(b, b"never read")
    await asyncio.wait_for(a.aclose(), LIMIT_S)
    await asyncio.wait_for(a.aclose(), LIMIT_S)
    a.abort()
    for part in parts:
        expect(await receive(b) == (b"last words", [part]), "aclose lost what had been sent")
    for _ in range(2):
        with expect_error(PeerLost, when="a receive after the peer closed"):
            await b.receive(deadline_s=LIMIT_S)
    for call in (a.receive, lambda: a.send(b"")):
        with expect_error(ChannelClosed, when="a call after aclose"):
            await call()


async def check_close_flushes_much(pair: Pair) -> None:
    a, b = pair
    part = pattern(200_000, 1)

    async def send_and_close() -> None:
        for _ in range(20):
            await send(a, b"much", part)
        await a.aclose()

    await send(b, b"never read")
    async with running(send_and_close()) as closing:
        for _ in range(20):
            expect(await receive(b) == (b"much", [part]), "aclose lost what had been sent")
        with expect_error(PeerLost, when="a receive after the peer closed"):
            await b.receive(deadline_s=LIMIT_S)
        await result_of(closing)


async def check_close_wakes(pair: Pair) -> None:
    a, b = pair
    async with running(a.receive()) as receiving, running(b.receive()) as peer_receiving:
        await asyncio.wait_for(a.aclose(), LIMIT_S)
        with expect_error(ChannelClosed, when="a receive pending at aclose"):
            await result_of(receiving)
        with expect_error(PeerLost, when="the peer's receive pending at aclose"):
            await result_of(peer_receiving)
    await asyncio.wait_for(asyncio.gather(a.aclose(), b.aclose()), LIMIT_S)


async def check_peer_lost_while_sending(pair: Pair) -> None:
    a, b = pair
    async with running(send(a, b"", bytes(HUGE_BYTES))) as sending:
        expect(not sending.done(), f"{HUGE_BYTES} bytes were sent with nobody receiving")
        b.abort()
        with expect_error(PeerLost, when="a send whose peer went away"):
            await result_of(sending)
    with expect_error(PeerLost, when="a call after the peer was lost"):
        await send(a, b"more")
