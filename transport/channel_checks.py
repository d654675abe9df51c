"""The promises of ``Channel``, one check each; a check gets a fresh, connected pair."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from dvrt.buffers import Region
from dvrt.errors import (
    ChannelBusy,
    ChannelClosed,
    Corrupted,
    PeerLost,
    TransferTimeout,
)
from dvrt.transport.base import MAX_HEADER_BYTES, MAX_REGIONS, Channel, Incoming, Limits
from dvrt.transport.ending_checks import (
    check_abort,
    check_cancelled_into,
    check_cancelled_send,
    check_close_flushes,
    check_close_flushes_much,
    check_close_wakes,
    check_close_while_sending,
    check_peer_lost_while_sending,
    check_send_deadline,
)
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
    settle,
)

BIG_BYTES = 24 << 20

ChannelCheck = Callable[[Pair], Awaitable[None]]


async def check_order_both_ways(pair: Pair) -> None:
    draw = random.Random(1)
    sizes = [[draw.choice((0, 1, 7, 500, 70_000)) for _ in range(i % 4)] for i in range(60)]
    messages = [
        (b"%d" % i, [pattern(n, i + k) for k, n in enumerate(row)]) for i, row in enumerate(sizes)
    ]

    async def send_all(channel: Channel) -> None:
        for header, parts in messages:
            await send(channel, header, *parts)

    async def receive_all(channel: Channel) -> None:
        for header, parts in messages:
            expect(await receive(channel) == (header, parts), f"message {header!r} arrived altered")

    a, b = pair
    await asyncio.wait_for(
        asyncio.gather(send_all(a), send_all(b), receive_all(a), receive_all(b)), LIMIT_S
    )


async def check_empty_messages(pair: Pair) -> None:
    a, b = pair
    for header, parts in ((b"", []), (b"", [b""]), (b"h", [b"", b""]), (b"", [b"", b"x", b""])):
        await send(a, header, *parts)
        expect(await receive(b) == (header, parts), f"{header!r} with {parts!r} arrived altered")


async def check_receiving_no_regions(pair: Pair) -> None:
    """Every way to receive them is harmless where there are none, also when it comes late."""
    a, b = pair
    for way in ("into", "take", "borrow"):
        await send(a, b"none")
        await send(a, b"some", b"x")
        incoming = await b.receive(deadline_s=LIMIT_S)
        await _receive_none(incoming, way)
        expect(await receive(b) == (b"some", [b"x"]), f"{way}() took of the next message")
        async with running(b.receive()) as receiving:
            await _receive_none(incoming, way)
            await send(a, b"next", b"yz")
            following = await result_of(receiving)
        await _receive_none(incoming, way)
        body = await following.take(deadline_s=LIMIT_S)
        expect(body == [b"yz"], f"a late {way}() harmed the next message")


async def _receive_none(incoming: Incoming, way: str) -> None:
    received = await getattr(incoming, way)(deadline_s=LIMIT_S)
    if way == "borrow":
        expect(list(received.views) == [], "regions came that were not sent")
        received.release()


async def check_messages_behind_regions(pair: Pair) -> None:
    """What follows a region may be read ahead; it is not the region, wherever that travels."""
    a, b = pair
    for size in (40_000, 300_000):
        behind = [pattern(20_000, i) for i in range(3 * size // 20_000)]

        async def send_all(size: int = size, behind: list[bytes] = behind) -> None:
            await send(a, b"region", pattern(size, size))
            for part in behind:
                await send(a, b"behind", part)

        async with running(send_all()) as sending:
            await settle()
            expect(await receive(b) == (b"region", [pattern(size, size)]), f"{size} bytes altered")
            for part in behind:
                expect(await receive(b) == (b"behind", [part]), f"what followed {size} is altered")
            await result_of(sending)


async def check_many_regions(pair: Pair) -> None:
    a, b = pair
    parts = [pattern(i % 300, i) for i in range(3000)]
    async with running(send(a, b"many", *parts)) as sending:
        expect(await receive(b) == (b"many", parts), "many regions arrived altered")
        await result_of(sending)


async def check_big_regions(pair: Pair) -> None:
    a, b = pair
    parts = [pattern(BIG_BYTES, 1), b"between", pattern(BIG_BYTES // 3, 2)]
    async with running(send(a, b"H" * 200_000, *parts)) as sending:
        incoming = await b.receive(deadline_s=LIMIT_S)
        expect(incoming.header == b"H" * 200_000, "a long header arrived altered")
        targets = [bytearray(len(part)) for part in parts]
        await incoming.into(*[Region.of(target) for target in targets], deadline_s=LIMIT_S)
        await result_of(sending)
    expect(targets == parts, "big regions arrived altered")
    await send(b, b"after")
    expect(await receive(a) == (b"after", []), "the channel does not work after big regions")


async def check_memory_is_free_after_send(pair: Pair) -> None:
    a, b = pair
    for size in (100, 300_000, BIG_BYTES):
        original = pattern(size, size)
        memory = bytearray(original)
        async with running(receive(b)) as receiving:
            await send(a, b"", memory)
            memory[:] = bytes(size)
            _, parts = await result_of(receiving)
        expect(parts == [original], f"{size} bytes changed after send had returned")


async def check_busy(pair: Pair) -> None:
    a, b = pair
    huge = bytes(HUGE_BYTES)
    async with running(a.receive()) as receiving, running(send(a, b"huge", huge)) as sending:
        with expect_error(ChannelBusy, when="a second receive"):
            await a.receive(deadline_s=LIMIT_S)
        with expect_error(ChannelBusy, when="a second send"):
            await a.send(b"second", deadline_s=LIMIT_S)
        incoming = await b.receive(deadline_s=LIMIT_S)
        with expect_error(ChannelBusy, when="a receive before the regions were received"):
            await b.receive(deadline_s=LIMIT_S)
        await incoming.into(Region.of(bytearray(HUGE_BYTES)), deadline_s=LIMIT_S)
        await result_of(sending)
        await send(b, b"reply")
        expect((await result_of(receiving)).header == b"reply", "the first receive was harmed")


async def check_refusals_break_nothing(pair: Pair) -> None:
    a, b = pair
    with expect_error(ValueError, when="a header beyond the limit"):
        await a.send(bytes(MAX_HEADER_BYTES + 1), deadline_s=LIMIT_S)
    with expect_error(ValueError, when="regions beyond the limit"):
        await send(a, b"", *([b""] * (MAX_REGIONS + 1)))
    await send(a, b"", b"abc", b"de")
    incoming = await b.receive(deadline_s=LIMIT_S)
    expect(incoming.sizes == (3, 2), "the sizes arrived altered")
    with expect_error(ValueError, when="a region of the wrong size"):
        await incoming.into(Region.of(bytearray(3)), Region.of(bytearray(3)), deadline_s=LIMIT_S)
    with expect_error(ValueError, when="too few regions"):
        await incoming.into(Region.of(bytearray(3)), deadline_s=LIMIT_S)
    with expect_error(TypeError, when="read-only memory"):
        await incoming.into(Region.of(b"abc"), Region.of(bytearray(2)), deadline_s=LIMIT_S)
    expect(await incoming.take(deadline_s=LIMIT_S) == [b"abc", b"de"], "a refusal lost bytes")
    with expect_error(ValueError, when="receiving the same regions twice"):
        await incoming.take(deadline_s=LIMIT_S)


async def check_cancelled_receive_loses_nothing(pair: Pair) -> None:
    a, b = pair
    for number in range(40):
        async with running(b.receive()) as receiving:
            await send(a, b"%d" % number, b"body")
            await settle(number % 8)
            receiving.cancel()
            try:
                incoming = await result_of(receiving)
            except asyncio.CancelledError:
                incoming = await b.receive(deadline_s=LIMIT_S)
        expect(incoming.header == b"%d" % number, f"message {number} was lost or came twice")
        expect(await incoming.take(deadline_s=LIMIT_S) == [b"body"], "the regions were lost")


async def check_late_receive_loses_nothing(pair: Pair) -> None:
    a, b = pair
    for deadline_s in (0.0, 0.02):
        with expect_error(TransferTimeout, when="a receive with nothing to receive"):
            await b.receive(deadline_s=deadline_s)
    await send(a, b"late", b"body")
    expect(await receive(b) == (b"late", [b"body"]), "a receive that timed out harmed the channel")


async def check_back_pressure(pair: Pair) -> None:
    a, b = pair
    part, count = pattern(256 << 10, 3), 256

    async def send_all() -> None:
        for _ in range(count):
            await send(a, b"", part)

    async with running(send_all()) as sending:
        await asyncio.sleep(0.02)
        taken_in = a.statistics().sent_bytes
        expect(taken_in < count * len(part) // 2, f"{taken_in} bytes were taken in unread")
        for _ in range(count):
            expect((await receive(b))[1] == [part], "a message arrived altered")
        await result_of(sending)


async def check_limits(pair: Pair) -> None:
    a, b = pair
    b.limits = Limits(max_header_bytes=100, max_regions=1, max_region_bytes=1000)
    await send(a, b"h" * 100, bytes(1000))
    expect((await receive(b))[0] == b"h" * 100, "a message within the limits was harmed")
    await send(a, b"h" * 101)
    with expect_error(Corrupted, when="a header beyond the receiver's limit"):
        await b.receive(deadline_s=LIMIT_S)
    with expect_error(PeerLost, when="a receive after a bad frame"):
        await b.receive(deadline_s=LIMIT_S)


async def check_statistics(pair: Pair) -> None:
    a, b = pair
    await send(a, b"12345", b"678", b"")
    await receive(b)
    sent, received = a.statistics(), b.statistics()
    expect((sent.sent_messages, sent.sent_bytes) == (1, 8), f"the sender counted {sent}")
    counted = (received.received_messages, received.received_bytes)
    expect(counted == (1, 8), f"the receiver counted {received}")
    expect((sent.received_messages, received.sent_messages) == (0, 0), "directions are mixed up")


async def check_context_manager(pair: Pair) -> None:
    a, b = pair
    async with a, b:
        await send(a, b"x")
        await receive(b)
    with expect_error(ChannelClosed, when="a call after the block"):
        await a.receive()


CHANNEL_CHECKS: tuple[ChannelCheck, ...] = (
    check_order_both_ways,
    check_empty_messages,
    check_receiving_no_regions,
    check_messages_behind_regions,
    check_many_regions,
    check_big_regions,
    check_memory_is_free_after_send,
    check_busy,
    check_refusals_break_nothing,
    check_cancelled_receive_loses_nothing,
    check_late_receive_loses_nothing,
    check_cancelled_into,
    check_abort,
    check_close_flushes,
    check_close_flushes_much,
    check_close_wakes,
    check_close_while_sending,
    check_limits,
    check_statistics,
    check_context_manager,
)
CLOGGED_CHECKS: tuple[ChannelCheck, ...] = (
    check_cancelled_send,
    check_send_deadline,
    check_peer_lost_while_sending,
    check_back_pressure,
)
"""Checks that can also be given a pair whose first channel is already full."""
