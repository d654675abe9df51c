"""What comes over a bare socket: rubbish, halves, slowness; and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import struct

import pytest

from dvrt.buffers import Region
from dvrt.errors import (
    ConfigError,
    ConnectFailed,
    Corrupted,
    PeerLost,
    TransferTimeout,
    TransportError,
)
from dvrt.transport import Channel, connect, listen
from dvrt.transport.framing import FrameKind, pack_head
from dvrt.transport.handshake import Hello, greet, welcome
from dvrt.transport.socket_channel import STAGING_BYTES

ADDRESS = "tcp://127.0.0.1:0"
SECRET = b"secret"


@contextlib.asynccontextmanager
async def raw_pair():
    """A plain socket and the channel at its other end."""
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

    async def handler(channel: Channel) -> None:
        accepted.set_result(channel)

    async with await listen(ADDRESS, handler) as listener:
        with socket.create_connection(("127.0.0.1", port_of(listener.address))) as sock:
            sock.setblocking(False)
            channel = await accepted
            try:
                yield sock, channel
            finally:
                channel.abort()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def hello(node: str) -> Hello:
    return Hello(node=node, incarnation="1", role="worker", description={})


async def test_a_million_random_bytes_on_the_port(loop_kind):
    draw = random.Random(7)
    outcomes: list[BaseException] = []

    async def handler(channel: Channel) -> None:
        try:
            await welcome(channel, hello=hello("server"), secret=SECRET, deadline_s=10)
        except TransportError as error:
            outcomes.append(error)
            raise
        await channel.send(b"welcome")
        await channel.aclose()

    async with await listen(ADDRESS, handler) as listener:
        loop, left, strangers = asyncio.get_running_loop(), 1_000_000, 0
        while left > 0:
            data = draw.randbytes(min(left, draw.choice((1, 15, 16, 100, 5_000, 60_000))))
            if draw.random() < 0.3:
                data = pack_head(b"", ())[: draw.randrange(16)] + data
            with socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", port_of(listener.address)))
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(sock, data)
            left -= len(data)
            strangers += 1
        async with await connect(listener.address, deadline_s=10) as channel:
            await greet(channel, hello=hello("client"), secret=SECRET, deadline_s=10)
            assert (await channel.receive(deadline_s=10)).header == b"welcome"
        async with asyncio.timeout(10):
            while len(outcomes) < strangers:
                await asyncio.sleep(0.01)
    assert {type(error) for error in outcomes} == {Corrupted, ConnectFailed}


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not a frame of this protocol"),
        (b"dvrt\x02\x01" + bytes(10), "frame version: expected 1, got 2"),
        (b"dvrt\x01\x07" + bytes(10), "frame kind"),
        (b"dvrt\x01\x01\0\0\0\0\0\0\xff\xff\xff\xff", "oversized frame, header bytes"),
        (b"dvrt\x01\x01\0\0\xff\xff\xff\xff\0\0\0\0", "oversized frame, regions"),
        (b"dvrt\x01\x01\0\0\0\0\0\1\0\0\0\0" + b"\xff" * 8, "oversized frame, region bytes"),
    ],
)
async def test_bad_frames_are_named(head, what, loop_kind):
    async with raw_pair() as (sock, channel):
        sock.send(head)
        with pytest.raises(Corrupted, match=what):
            await channel.receive(deadline_s=5)
        with pytest.raises(PeerLost):
            await channel.receive(deadline_s=5)
        await asyncio.sleep(0.01)
        with pytest.raises(ConnectionError):
            while sock.recv(100):
                pass
            raise ConnectionResetError


@pytest.mark.parametrize("end", [socket.socket.close, reset])
@pytest.mark.parametrize("cut", [1, 15, 16, 20, 100, 100_000])
async def test_a_connection_cut_in_the_middle_of_a_frame(cut, end, loop_kind):
    frame = pack_head(b"header", [300_000]) + bytes(300_000)
    async with raw_pair() as (sock, channel):
        sock.send(frame[:cut])
        end(sock)
        memory = bytearray(300_000)
        with pytest.raises(PeerLost):
            incoming = await channel.receive(deadline_s=5)
            await incoming.into(Region.of(memory), deadline_s=5)
        await channel.quiet()
        with pytest.raises(PeerLost):
            await channel.send(b"more")


async def test_half_closed(loop_kind):
    async with raw_pair() as (sock, channel):
        sock.send(pack_head(b"last", ()))
        sock.shutdown(socket.SHUT_WR)
        assert (await channel.receive(deadline_s=5)).header == b"last"
        with pytest.raises(PeerLost, match="without a goodbye"):
            await channel.receive(deadline_s=5)
        with pytest.raises(PeerLost):
            await channel.send(b"to nobody")


async def test_bytes_that_trickle_in(loop_kind):
    frame = pack_head(b"header", [5, 0, 3]) + b"abcdexyz"
    async with raw_pair() as (sock, channel):
        receiving = asyncio.create_task(channel.receive(deadline_s=10))
        for start in range(len(frame) - 3):
            sock.send(frame[start : start + 1])
            await asyncio.sleep(0)
        filling = asyncio.create_task((await receiving).take(deadline_s=10))
        for start in range(len(frame) - 3, len(frame)):
            await asyncio.sleep(0.001)
            sock.send(frame[start : start + 1])
        assert await filling == [b"abcde", b"", b"xyz"]


async def test_a_deadline_in_the_middle_of_a_region_breaks_the_channel(loop_kind):
    async with raw_pair() as (sock, channel):
        sock.send(pack_head(b"", [1000]) + bytes(500))
        incoming = await channel.receive(deadline_s=5)
        memory = bytearray(1000)
        with pytest.raises(TransferTimeout):
            await incoming.into(Region.of(memory), deadline_s=0.02)
        await channel.quiet()
        with contextlib.suppress(ConnectionError):
            sock.send(b"\xff" * 500)
        await asyncio.sleep(0.01)
        assert memory == bytes(1000)
        with pytest.raises(PeerLost):
            await channel.receive()


async def test_an_unread_sender_is_held_back(loop_kind):
    """The channel reads ahead so much and no more; the rest waits in the sender's kernel."""
    async with raw_pair() as (sock, channel):
        chunk, sent = pack_head(b"x" * 4000, ()), 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sock.send(chunk)
                await asyncio.sleep(0)
        assert len(channel._staging) <= STAGING_BYTES
        for _ in range(sent // len(chunk)):
            assert len((await channel.receive(deadline_s=5)).header) == 4000


async def test_small_messages_leave_in_one_write():
    async with raw_pair() as (sock, channel):
        parts = [b"a" * 1000, b"b" * 2000]
        await channel.send(b"header", *[Region.of(part) for part in parts])
        await asyncio.sleep(0.01)
        assert sock.recv(1 << 20) == pack_head(b"header", [1000, 2000]) + b"".join(parts)


async def test_goodbye_is_the_last_word(loop_kind):
    async with raw_pair() as (sock, channel):
        await channel.aclose()
        sock.setblocking(True)
        assert sock.recv(100) == pack_head(b"", (), FrameKind.GOODBYE)
        assert sock.recv(100) == b""


async def test_connect_refused_and_unanswered(loop_kind):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ConnectFailed, match="refused"):
            await connect(f"tcp://127.0.0.1:{port}", deadline_s=5)
        sock.listen(0)
        with contextlib.ExitStack() as others:
            with pytest.raises(ConnectFailed, match="did not answer within"):
                while True:
                    channel = await connect(f"tcp://127.0.0.1:{port}", deadline_s=0.1)
                    others.callback(channel.abort)
    with pytest.raises(ConnectFailed):
        await connect("tcp://no.such.host.invalid:1", deadline_s=5)
    with pytest.raises(ConnectFailed, match="cannot listen"):
        await listen("tcp://192.0.2.1:0", None)


async def test_out_of_file_descriptors_is_survived(monkeypatch, loop_kind):
    """The listener rests instead of spinning, and goes on when there are files again."""

    async def handler(channel: Channel) -> None:
        await channel.send(b"hello")
        await channel.aclose()

    async with await listen(ADDRESS, handler) as listener:
        real, calls = listener._sock, []

        class Exhausted:
            def accept(self):
                calls.append(1)
                if len(calls) < 3:
                    raise OSError(errno.EMFILE, "too many open files")
                return real.accept()

            def __getattr__(self, name):
                return getattr(real, name)

        monkeypatch.setattr(listener, "_sock", Exhausted())
        async with await connect(listener.address, deadline_s=5) as channel:
            assert (await channel.receive(deadline_s=5)).header == b"hello"
        assert len(calls) == 3


def resolve_to(monkeypatch, *hosts: str) -> None:
    """Have the name ``there`` lead to these addresses, in this order."""

    async def getaddrinfo(self, host, port, **kwargs):
        assert host == "there"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


async def keep(channel: Channel) -> None:
    with contextlib.suppress(TransportError):
        await channel.receive(deadline_s=5)


async def test_the_addresses_of_a_name_are_tried_in_turn(monkeypatch):
    resolve_to(monkeypatch, "127.0.0.3", "127.0.0.2")
    async with await listen("tcp://127.0.0.2:0", keep) as listener:
        port = listener.address.rpartition(":")[2]
        channel = await connect(f"tcp://there:{port}", deadline_s=5)
        assert "127.0.0.2" in channel.peer
        await channel.aclose()
        resolve_to(monkeypatch, "127.0.0.3", "127.0.0.4")
        with pytest.raises(ConnectFailed, match="refused"):
            await connect(f"tcp://there:{port}", deadline_s=5)


async def test_an_address_that_does_not_answer_takes_its_share_of_the_time(monkeypatch):
    resolve_to(monkeypatch, "127.0.0.3", "127.0.0.2")
    loop = asyncio.get_running_loop()
    connecting = loop.sock_connect

    async def sock_connect(sock, name):
        if name[0] == "127.0.0.3":
            await asyncio.Event().wait()
        await connecting(sock, name)

    async with await listen("tcp://127.0.0.2:0", keep) as listener:
        port = listener.address.rpartition(":")[2]
        monkeypatch.setattr(loop, "sock_connect", sock_connect)
        channel = await connect(f"tcp://there:{port}", deadline_s=1)
        await channel.aclose()


async def test_a_name_that_is_here_by_one_address_is_listened_at(monkeypatch):
    resolve_to(monkeypatch, "192.0.2.1", "127.0.0.2")
    async with await listen("tcp://there:0", keep) as listener:
        assert listener.address.startswith("tcp://127.0.0.2:")


async def test_what_is_no_name_of_a_machine_is_refused():
    with pytest.raises(ConfigError, match="'a..b' is no name"):
        await connect("tcp://a..b:1", deadline_s=5)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="a system without it")
async def test_how_long_a_host_may_acknowledge_nothing() -> None:
    async with raw_pair() as (_, channel):
        sock = channel._sock  # type: ignore[attr-defined]
        timeout_ms = lambda: sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)  # noqa: E731
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert timeout_ms() == 0
        channel.limits = channel.limits._replace(unacknowledged_s=1.5)
        assert timeout_ms() == 1500
