"""Shared memory: bounded windows, borrowed bytes, and peers that lie about theirs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import itertools
import os
import random
import re
import select
import socket
import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dvrt.buffers import Region
from dvrt.errors import ConfigError, ConnectFailed, Corrupted, PeerLost, TransportError
from dvrt.transport import Channel, connect, listen
from dvrt.transport.arena import ALIGNMENT, PAGE_BYTES, WARM_BYTES, Arena, PeerArena, aligned
from dvrt.transport.bell import Bell
from dvrt.transport.conformance import open_pair
from dvrt.transport.framing import pack_head
from dvrt.transport.releases import Releases
from dvrt.transport.shm import ShmTransport
from dvrt.transport.shm_channel import INLINE_BYTES, PIECE_BYTES

ARENA_BYTES = 1 << 20


def pair(arena_bytes: int = ARENA_BYTES):
    return open_pair(ShmTransport(arena_bytes=arena_bytes), "shm://")


steps_of = some.tuples(some.integers(1, 3000), some.sampled_from([0, 0, 0, 1, 2, 9]))


@given(some.lists(steps_of, min_size=10, max_size=120))
def test_extents_never_overlap(steps):
    arena = Arena(8192)
    try:
        live, released = [], 0
        for size, frees in steps:
            offset = arena.allocate(size)
            if offset is not None:
                end = offset + aligned(size)
                assert offset % ALIGNMENT == 0
                assert 0 <= offset < end <= arena.capacity
                assert all(end <= start or stop <= offset for start, stop in live)
                live.append((offset, end))
            else:
                assert live, "an empty arena has room for what fits"
            freed = min(frees, len(live))
            del live[:freed]
            released += freed
            arena.reclaim(released)
    finally:
        arena.close()


def test_small_extents_stay_where_it_is_warm():
    arena = Arena(64 << 20)
    try:
        for number in range(1000):
            offset = arena.allocate(100_000)
            assert offset is not None
            assert offset + 100_000 <= WARM_BYTES
            arena.reclaim(max(0, number - 3))
    finally:
        arena.close()


@pytest.mark.parametrize("count", [-1, 2])
def test_impossible_releases_are_refused(count):
    arena = Arena(4096)
    try:
        arena.allocate(10)
        with pytest.raises(Corrupted, match="releases of the arena"):
            arena.reclaim(count)
    finally:
        arena.close()


@given(some.permutations(range(12)))
def test_releases_are_told_in_order(order):
    releases = Releases()
    assert [releases.take() for _ in order] == list(range(12))
    given_back, told = set(), 0
    for number in order:
        given_back.add(number)
        told += releases.give(number)
        assert told == next(n for n in range(13) if n not in given_back)


async def test_borrowed_bytes_are_the_peers_own(loop_kind):
    parts = [os.urandom(n) for n in (40_000, 0, 3, 100_000)]
    async with pair() as (a, b):
        await a.send(b"h", *[Region.of(part) for part in parts], deadline_s=5)
        with await (await b.receive(deadline_s=5)).borrow(deadline_s=5) as borrowed:
            assert [bytes(view) for view in borrowed.views] == parts
            assert all(view.readonly for view in borrowed.views)
        with pytest.raises(ValueError, match="released"):
            _ = borrowed.views
        borrowed.release()


async def test_what_is_borrowed_holds_the_sender_back(loop_kind):
    body = Region.of(bytes(ARENA_BYTES // 4))
    async with pair() as (a, b):
        held = []
        for _ in range(4):
            await a.send(b"", body, deadline_s=5)
            held.append(await (await b.receive(deadline_s=5)).borrow(deadline_s=5))
        sending = asyncio.create_task(a.send(b"fifth", body, deadline_s=5))
        await asyncio.sleep(0.02)
        for borrowed in (held[2], held[1]):
            borrowed.release()
            await asyncio.sleep(0.005)
            assert not sending.done()
        held[0].release()
        await sending
        held[3].release()
        assert (await (await b.receive(deadline_s=5)).borrow(deadline_s=5)).views[0] == bytes(
            ARENA_BYTES // 4
        )


async def test_borrowed_bytes_outlive_the_channel():
    body = os.urandom(200_000)
    async with pair() as (a, b):
        await a.send(b"", Region.of(body), deadline_s=5)
        borrowed = await (await b.receive(deadline_s=5)).borrow(deadline_s=5)
        views = borrowed.views
        a.abort()
        b.abort()
        assert views[0] == body
    borrowed.release()
    del views
    gc.collect()


@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1, ARENA_BYTES, ARENA_BYTES + 1])
async def test_sizes_at_the_borders(size, loop_kind):
    body = random.Random(size).randbytes(size)
    async with pair() as (a, b):
        for receive_by in ("borrow", "take"):
            sending = asyncio.create_task(a.send(b"h", Region.of(body), deadline_s=5))
            incoming = await b.receive(deadline_s=5)
            if receive_by == "borrow":
                with await incoming.borrow(deadline_s=5) as borrowed:
                    assert borrowed.views[0] == body
            else:
                assert await incoming.take(deadline_s=5) == [body]
            await sending


async def test_pieces_of_a_large_message_are_one_extent():
    body = random.Random(1).randbytes(3 * PIECE_BYTES + 5)
    async with pair(64 << 20) as (a, b):
        sending = asyncio.create_task(a.send(b"", Region.of(body), deadline_s=5))
        incoming = await b.receive(deadline_s=5)
        with await incoming.borrow(deadline_s=5) as borrowed:
            assert borrowed.views[0] == body
        await sending


async def test_nothing_is_left_in_the_file_system():
    before = set(os.listdir("/dev/shm"))
    async with pair() as (a, b):
        await a.send(b"", Region.of(bytes(500_000)), deadline_s=5)
        await (await b.receive(deadline_s=5)).take(deadline_s=5)
        assert set(os.listdir("/dev/shm")) - before == set()


@contextlib.asynccontextmanager
async def lying_peer(arena_bytes: int = ARENA_BYTES):
    """A plain socket that set itself up by the rules, and the channel at its other end."""
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

    async def handler(channel: Channel) -> None:
        accepted.set_result(channel)

    arena, bell = Arena(arena_bytes), Bell()
    try:
        async with await ShmTransport(arena_bytes).listen("shm://", handler) as listener:
            with stranger(listener.address) as sock:
                set_up = struct.pack("!4sHHQ", b"dvsm", 1, 0, arena_bytes)
                socket.send_fds(sock, [set_up], [arena.fd, bell.fd])
                channel = await accepted
                try:
                    yield sock, channel, arena
                finally:
                    channel.abort()
    finally:
        bell.close()
        arena.close()


@pytest.mark.parametrize(
    ("piece", "what"),
    [
        ((ARENA_BYTES, 50_000), "extent in the peer's arena"),
        ((2**63, 50_000), "extent in the peer's arena"),
        ((0, 0), "size of a piece"),
        ((0, 50_001), "size of a piece"),
    ],
)
async def test_pieces_outside_the_arena_are_refused(piece, what, loop_kind):
    async with lying_peer() as (sock, channel, _):
        sock.send(pack_head(b"", [50_000]) + struct.pack("!QQ", *piece))
        incoming = await channel.receive(deadline_s=5)
        with pytest.raises(Corrupted, match=what):
            await incoming.take(deadline_s=5)
        with pytest.raises(PeerLost):
            await channel.receive()


async def test_releases_that_cannot_be_are_refused():
    async with lying_peer() as (_, channel, arena):
        arena.count_releases(7)
        with pytest.raises(Corrupted, match="releases of the arena"):
            await channel.send(b"", Region.of(bytes(50_000)), deadline_s=5)


SETUP = "set-up of a channel: expected "


def set_up_of(magic: bytes = b"dvsm", version: int = 1, capacity: int = 4096) -> bytes:
    return struct.pack("!4sHHQ", magic, version, 0, capacity)


@pytest.mark.parametrize(
    ("set_up", "make_fds", "what"),
    [
        (b"rubbish", lambda: [sealed(), bell()], SETUP + "16, got 7"),
        (set_up_of(), lambda: [], SETUP + "16, got 16"),
        (set_up_of(), lambda: [sealed()], SETUP + "16, got 16"),
        (set_up_of(magic=b"dvsn"), lambda: [sealed(), bell()], "got (b'dvsn', 1)"),
        (set_up_of(version=9), lambda: [sealed(), bell()], "got (b'dvsm', 9)"),
        (set_up_of(), lambda: [memfd(), bell()], "seals of the peer's arena"),
        (set_up_of(), lambda: [bell(), bell()], "seals of the peer's arena"),
        (set_up_of(capacity=1 << 40), lambda: [sealed(), bell()], "size of the peer's arena"),
        (set_up_of(capacity=4095), lambda: [sealed(), bell()], "size of the peer's arena"),
    ],
)
async def test_a_set_up_that_lies_is_not_let_in(set_up, make_fds, what, caplog, loop_kind):
    caplog.set_level("INFO", "dvrt.transport")

    async def handler(channel: Channel) -> None:
        pytest.fail("let in")

    async with await listen("shm://", handler) as listener:
        with stranger(listener.address) as sock:
            give(sock, set_up, make_fds())
            async with asyncio.timeout(5):
                while "was not let in: " not in caplog.text:
                    await asyncio.sleep(0.005)
    assert what in caplog.text.partition("was not let in: Corrupted: ")[2]


async def test_a_set_up_that_is_right_is_let_in(loop_kind):
    """What the lies above differ from in one thing each."""
    accepted: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

    async def handler(channel: Channel) -> None:
        accepted.set_result(channel)

    async with await listen("shm://", handler) as listener:
        with stranger(listener.address) as sock:
            give(sock, set_up_of(), [sealed(), bell()])
            (await asyncio.wait_for(accepted, 5)).abort()


def stranger(address: str) -> socket.socket:
    """A plain socket, connected."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("\0dvrt-shm/" + address.removeprefix("shm://"))
    return sock


def give(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    """Send the data with the descriptors, which are the receiver's alone then."""
    try:
        socket.send_fds(sock, [data], fds)
    finally:
        for fd in fds:
            os.close(fd)


def memfd() -> int:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE_BYTES + 4096)
    return fd


def sealed() -> int:
    """As an arena of 4096 bytes is."""
    fd = memfd()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def bell() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


async def test_half_a_million_random_bytes_instead_of_a_set_up(caplog, loop_kind):
    caplog.set_level("INFO", "dvrt.transport")
    draw, files, memory = random.Random(11), open_files(), (memfd, sealed, bell)
    async with await listen("shm://", echo) as listener:
        left, strangers = 500_000, 0
        while left > 0:
            data = draw.randbytes(min(left, draw.choice((1, 15, 16, 17, 100, 5_000, 60_000))))
            if draw.random() < 0.3:
                data = set_up_of()[: draw.randrange(16)] + data
            with stranger(listener.address) as sock:
                sock.setblocking(False)
                give(sock, data, [draw.choice(memory)() for _ in range(draw.randrange(4))])
                if draw.random() < 0.8:  # the others leave before they are answered
                    await asyncio.get_running_loop().sock_recv(sock, 100)
            left -= len(data)
            strangers += 1
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while caplog.text.count("was not let in: ") < strangers:
                await asyncio.sleep(0.01)
        errors = Counter(re.findall(r"was not let in: (\w+)", caplog.text))
        assert set(errors) <= {"Corrupted", "ConnectFailed"}
        assert errors["Corrupted"] > strangers // 2
        await transfer(listener.address)
    await files_are_again(files)


async def test_half_a_million_random_bytes_as_frames(loop_kind):
    """Behind a good set-up, and often behind a head or a piece that is good as well."""
    draw, files, outcomes = random.Random(12), open_files(), []

    async def handler(channel: Channel) -> None:
        try:
            while True:
                incoming = await channel.receive(deadline_s=10)
                await incoming.take(deadline_s=10)
        except TransportError as error:
            outcomes.append(error)
        await channel.aclose()

    async with await listen("shm://", handler) as listener:
        left, strangers = 500_000, 0
        while left > 0:
            data = draw.randbytes(min(left, draw.choice((1, 15, 16, 100, 5_000, 60_000))))
            with stranger(listener.address) as sock:
                sock.setblocking(False)
                give(sock, set_up_of(), [sealed(), bell()])
                await asyncio.get_running_loop().sock_recv(sock, 100)  # they are set up as well
                sock.send(draw_start(draw) + data)
            left -= len(data)
            strangers += 1
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            while len(outcomes) < strangers:
                await asyncio.sleep(0.01)
        assert {type(error) for error in outcomes} == {Corrupted, PeerLost}
    async with await listen("shm://", echo) as listener:
        await transfer(listener.address)
    await files_are_again(files)


def draw_start(draw: random.Random) -> bytes:
    """Nothing, a part of a head, or the head of a message that is small or lies in the arena."""
    piece = struct.pack("!QQ", draw.choice((0, 64, 4096)), draw.choice((1, 4096, 50_000)))
    return draw.choice(
        (
            b"",
            pack_head(b"", ())[: draw.randrange(16)],
            pack_head(b"header", [3, 0]) + b"abc",
            pack_head(b"", [50_000]),
            pack_head(b"", [50_000]) + piece,
        )
    )


async def echo(channel: Channel) -> None:
    async with channel:
        incoming = await channel.receive(deadline_s=10)
        parts = await incoming.take(deadline_s=10)
        await channel.send(incoming.header, *map(Region.of, parts), deadline_s=10)


async def transfer(address: str) -> None:
    """A message there and back, one part of it through the arena."""
    parts = [os.urandom(200_000), b"", b"x"]
    async with await connect(address, deadline_s=10) as channel:
        await channel.send(b"header", *map(Region.of, parts), deadline_s=10)
        incoming = await channel.receive(deadline_s=10)
        assert (incoming.header, await incoming.take(deadline_s=10)) == (b"header", parts)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def files_are_again(before: set[str]) -> None:
    async with asyncio.timeout(10):
        while open_files() - before:
            gc.collect()
            await asyncio.sleep(0.01)


class ScarceEpoll:
    """An epoll that cannot be made, or cannot register, when it is ``nth`` of all such calls."""

    def __init__(self, call: str, nth: int) -> None:
        self.call, self.nth, self.calls, self.make = call, nth, itertools.count(), select.epoll

    def __call__(self):
        if self.call == "make":
            self.count()
            return self.make()
        return Registering(self.make(), self)

    def count(self) -> None:
        if next(self.calls) == self.nth:
            raise OSError(errno.EMFILE, "too many")


class Registering:
    def __init__(self, real: select.epoll, scarce: ScarceEpoll) -> None:
        self._real, self._scarce = real, scarce

    def register(self, *args: int) -> None:
        self._scarce.count()
        self._real.register(*args)

    def __getattr__(self, name: str):
        return getattr(self._real, name)


@pytest.mark.parametrize(
    ("call", "nth"), [("make", n) for n in range(6)] + [("register", n) for n in range(8)]
)
async def test_out_of_file_descriptors_while_setting_up(call, nth, monkeypatch, caplog, loop_kind):
    """Whichever side it meets, and wherever: the right error, and nothing is leaked."""
    caplog.set_level("INFO", "dvrt.transport")
    epoll, files = ScarceEpoll(call, nth), open_files()
    async with await listen("shm://", echo) as listener:
        monkeypatch.setattr(select, "epoll", epoll)
        with pytest.raises((ConnectFailed, PeerLost)):
            await transfer(listener.address)
        assert next(epoll.calls) > nth
        await transfer(listener.address)
    await files_are_again(files)
    assert "OSError" not in caplog.text


async def test_out_of_file_descriptors_for_the_socket(monkeypatch):
    def fails(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr("dvrt.transport.shm.socket.socket", fails)
    with pytest.raises(ConnectFailed, match="Too many open files"):
        await connect("shm://nobody", deadline_s=1)
    with pytest.raises(ConnectFailed, match="Too many open files"):
        await listen("shm://", echo)


async def test_an_error_without_a_number_is_told_in_its_own_words(monkeypatch):
    def fails(*_: object) -> int:
        raise OSError("the kernel is unwell")

    async with await listen("shm://", echo) as listener:
        monkeypatch.setattr("dvrt.transport.arena.os.memfd_create", fails)
        with pytest.raises(ConnectFailed, match="the kernel is unwell"):
            await connect(listener.address, deadline_s=5)


def test_memory_that_could_shrink_is_refused():
    fd = memfd()
    try:
        with pytest.raises(Corrupted, match="seals"):
            PeerArena(fd, 4096)
    finally:
        os.close(fd)


async def test_a_silent_stranger_is_let_go(monkeypatch):
    monkeypatch.setattr("dvrt.transport.shm.SET_UP_S", 0.05)
    async with await listen("shm://", lambda channel: channel.aclose()) as listener:
        with stranger(listener.address) as sock:
            sock.settimeout(5)
            await asyncio.sleep(0.15)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(100):
                    pass


async def test_bad_names():
    with pytest.raises(ConfigError, match="at most 90 bytes"):
        await connect("shm://" + "x" * 91, deadline_s=1)
    with pytest.raises(ConnectFailed, match="refused"):
        await connect("shm://nobody-is-here", deadline_s=1)


async def test_small_messages_in_the_other_direction_do_not_hold_credits_up(loop_kind):
    """Credits are beside the stream: a full stream the other way never blocks a sender."""
    async with pair() as (a, b):
        clog = asyncio.create_task(flood(b))
        await asyncio.sleep(0.02)
        for _ in range(10):
            sending = asyncio.create_task(a.send(b"", Region.of(bytes(ARENA_BYTES))))
            await (await b.receive(deadline_s=5)).take(deadline_s=5)
            await asyncio.wait_for(sending, 5)
        assert b.statistics().sent_messages < 100
        clog.cancel()
        await asyncio.gather(clog, return_exceptions=True)


async def flood(channel: Channel) -> None:
    while True:
        await channel.send(b"x" * 20_000)
