"""Sends of another thread: whole messages, in order, or nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator

from dvrt.buffers import Region
from dvrt.errors import PeerLost
from dvrt.transport.expecting import expect_error, receive
from dvrt.transport.framing import FrameKind, pack_head
from dvrt.transport.socket_channel import JOIN_BYTES, SocketChannel

LIMIT_S = 10.0


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[SocketChannel, SocketChannel]]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    here, there = SocketChannel(ours, "there"), SocketChannel(theirs, "here")
    try:
        yield here, there
    finally:
        here.abort()
        there.abort()


@contextlib.asynccontextmanager
async def narrow() -> AsyncIterator[tuple[SocketChannel, socket.socket]]:
    """A channel whose socket takes little, and the bare socket at its other end."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    listener.close()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 10)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 10)
    ours.setblocking(False)
    theirs.setblocking(False)
    channel = SocketChannel(ours, "there")
    try:
        yield channel, theirs
    finally:
        channel.abort()
        theirs.close()


async def read_exactly(sock: socket.socket, count: int) -> bytes:
    data, loop = bytearray(), asyncio.get_running_loop()
    while len(data) < count:
        part = await asyncio.wait_for(loop.sock_recv(sock, count - len(data)), LIMIT_S)
        assert part, f"the stream ended after {len(data)} bytes of {count}"
        data += part
    return bytes(data)


async def test_a_thread_and_the_loop_send_side_by_side(loop_kind) -> None:
    count = 300
    async with pair() as (here, there):

        def send_all() -> None:
            for i in range(count):
                while not here.try_send(b"t%d" % i, Region.of(bytes(i)), Region.of(b"end")):
                    pass

        thread = threading.Thread(target=send_all)
        thread.start()
        seen: list[bytes] = []

        async def read_all() -> None:
            while len(seen) < 2 * count:
                header, parts = await receive(there)
                size = int(header[1:])
                assert parts == [bytes(size), b"end"]
                seen.append(header)

        reading = asyncio.create_task(read_all())
        for i in range(count):
            await here.send(b"l%d" % i, Region.of(bytes(i)), Region.of(b"end"), deadline_s=LIMIT_S)
            await asyncio.sleep(0)
        await asyncio.wait_for(reading, LIMIT_S)
        await asyncio.to_thread(thread.join)
        for kind in (b"t", b"l"):
            mine = [header for header in seen if header.startswith(kind)]
            assert mine == [kind + b"%d" % i for i in range(count)]
        await asyncio.sleep(0)
        assert here.statistics().sent_messages == 2 * count
        assert here.statistics().sent_bytes == there.statistics().received_bytes


async def test_what_a_socket_takes_in_part_follows_before_anything_else(loop_kind) -> None:
    body = bytes(range(256)) * 80
    frame = pack_head(b"x", [len(body)]) + body
    async with narrow() as (channel, sock):
        n_sent = 0
        while await asyncio.to_thread(channel.try_send, b"x", Region.of(body)):
            n_sent += 1
        sending = asyncio.create_task(channel.send(b"last", deadline_s=LIMIT_S))
        expected = frame * n_sent + pack_head(b"last", ())
        assert await read_exactly(sock, len(expected)) == expected
        await sending
        assert n_sent and channel.statistics().sent_messages == n_sent + 1


async def test_the_rest_leaves_without_another_send_and_before_the_goodbye(loop_kind) -> None:
    body = bytes(20 << 10)
    frame = pack_head(b"x", [len(body)]) + body
    async with narrow() as (channel, sock):
        n_sent = 0
        while await asyncio.to_thread(channel.try_send, b"x", Region.of(body)):
            n_sent += 1
        assert await read_exactly(sock, n_sent * len(frame)) == frame * n_sent
        while await asyncio.to_thread(channel.try_send, b"x", Region.of(body)):
            n_sent += 1
        closing = asyncio.create_task(channel.aclose())
        goodbye = pack_head(b"", (), FrameKind.GOODBYE)
        rest = await asyncio.wait_for(_read_to_end(sock), LIMIT_S)
        await closing
        assert rest.endswith(goodbye)
        assert (len(rest) - len(goodbye)) % len(frame) == 0


async def _read_to_end(sock: socket.socket) -> bytes:
    data, loop = bytearray(), asyncio.get_running_loop()
    while part := await loop.sock_recv(sock, 1 << 16):
        data += part
        if data.endswith(pack_head(b"", (), FrameKind.GOODBYE)):
            break
    return bytes(data)


async def test_nothing_is_sent_that_is_large_or_on_a_channel_that_is_over() -> None:
    async with pair() as (here, there):
        assert not here.try_send(b"x", Region.of(bytes(JOIN_BYTES)))
        assert here.try_send(b"x", Region.of(b"small"))
        assert await receive(there) == (b"x", [b"small"])
        there.abort()
        with expect_error(PeerLost, when="the peer is gone"):
            await receive(here)
        assert not here.try_send(b"x")
        here.abort()
        assert not here.try_send(b"x")
