"""``ucx``: set-ups, pieces, device memory, strangers, and what is said where it is missing."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import importlib.util
import logging
import random
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.buffers import MemoryKind, Region
from dvrt.errors import ConfigError, ConnectFailed, Corrupted, PeerLost, TransferTimeout
from dvrt.transport import connect, get_transport, listen
from dvrt.transport.conformance import open_pair
from dvrt.transport.ucx_parts import DIRECT_BYTES, PACK_BYTES, Parts, split
from dvrt.transport.ucx_setup import FIXED_BYTES, MAX_ADDRESS_BYTES, Announced, SetUp

ADDRESS = "ucx://127.0.0.1:0"
needs_ucx = pytest.mark.ucx
OURS = SetUp(ucx_version=(1, 21, 0), channel=7, pid=8, host=b"h" * 16, address=b"where")


@pytest.mark.skipif(importlib.util.find_spec("ucxx") is not None, reason="ucxx is here")
async def test_without_ucxx_the_extra_is_named():
    for call in (connect("ucx://127.0.0.1:1", deadline_s=1), listen(ADDRESS, None)):
        with pytest.raises(ConfigError, match=r"ucx:// needs the package ucxx.*dvrt\[ucx\]"):
            await call


async def test_bad_addresses():
    with pytest.raises(ConfigError, match="expected ucx://host:port"):
        await connect("ucx://nowhere", deadline_s=1)


def test_a_set_up_survives_the_wire():
    said = OURS.pack()
    announced = Announced.unpack(said[:FIXED_BYTES], ours=OURS)
    assert announced.address_bytes == len(OURS.address)
    assert announced.complete(said[FIXED_BYTES:]) == OURS


@given(st.binary(min_size=FIXED_BYTES, max_size=FIXED_BYTES))
def test_rubbish_is_no_set_up(data):
    with pytest.raises(Corrupted):
        Announced.unpack(data, ours=OURS)


def test_what_differs_is_named():
    older = dataclasses.replace(OURS, ucx_version=(1, 20, 3)).pack()
    with pytest.raises(Corrupted, match=r"UCX version: expected \(1, 21, 0\), got \(1, 20, 3\)"):
        Announced.unpack(older[:FIXED_BYTES], ours=OURS)
    long = dataclasses.replace(OURS, address=bytes(MAX_ADDRESS_BYTES + 1)).pack()
    with pytest.raises(Corrupted, match="size of a worker's address"):
        Announced.unpack(long[:FIXED_BYTES], ours=OURS)
    with pytest.raises(Corrupted, match="digest of a worker's address"):
        Announced.unpack(OURS.pack()[:FIXED_BYTES], ours=OURS).complete(b"other")


SIZES = st.lists(
    st.sampled_from([0, 1, 100, DIRECT_BYTES - 1, DIRECT_BYTES, PACK_BYTES // 3, PACK_BYTES + 1]),
    max_size=30,
)


@given(SIZES)
def test_pieces_are_all_of_a_message_in_order(sizes):
    spans = split(sizes)
    covered = [index for span in spans for index in range(span.first, span.stop)]
    assert covered == sorted(set(covered))
    assert {index for index, size in enumerate(sizes) if size} <= set(covered)
    for span in spans:
        assert span.nbytes == sum(sizes[span.first : span.stop]) > 0
        alone = span.stop == span.first + 1
        assert alone or max(sizes[span.first : span.stop]) < DIRECT_BYTES
        assert alone or span.nbytes <= PACK_BYTES


def test_what_is_gathered_is_scattered():
    draw = random.Random(3)
    parts = [draw.randbytes(size) for size in (5, 0, 70_000, 1000, 2000, 40_000, 9)]
    sizes = [len(part) for part in parts]
    out = Parts([Region.of(part) for part in parts], sizes)
    targets = [bytearray(size) for size in sizes]
    back = Parts([Region.of(target) for target in targets], sizes)
    out.gather()
    for source, target in zip(out.memory, back.memory, strict=True):
        target.view()[:] = source.view()
    back.scatter()
    assert targets == parts


def device(memory: bytearray) -> Region:
    """Memory that is given to UCX by its address alone, as that of a device is."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return Region(address, len(memory), MemoryKind.CUDA, memory)


@needs_ucx
@pytest.mark.parametrize("sizes", [(0, 7), (100, 20_000), (40_000, 9, 0, 300_000), (90,) * 5000])
@pytest.mark.parametrize(("sender", "receiver"), [(device, Region.of), (Region.of, device)])
async def test_device_memory_travels_by_its_address(sizes, sender, receiver, loop_kind):
    draw = random.Random(4)
    parts = [bytearray(draw.randbytes(size)) for size in sizes]
    targets = [bytearray(size) for size in sizes]

    def regions(kind, memory):
        return [kind(each) if each else Region.of(each) for each in memory]

    async with open_pair(get_transport("ucx"), ADDRESS) as (a, b):
        if not a.moves_cuda:
            pytest.skip("this UCX was built without CUDA")
        sending = asyncio.create_task(a.send(b"", *regions(sender, parts), deadline_s=10))
        incoming = await b.receive(deadline_s=10)
        await incoming.into(*regions(receiver, targets), deadline_s=10)
        await sending
    assert targets == parts


@needs_ucx
async def test_one_direction_does_not_wait_for_the_other(loop_kind):
    """A large message arrives though its sender does not read what fills its own inbox."""
    body = bytes(range(256)) * 8000
    async with open_pair(get_transport("ucx"), ADDRESS) as (a, b):
        with pytest.raises(TransferTimeout):
            flood = asyncio.create_task(flood_with(b))
            await asyncio.sleep(0.1)
            sending = asyncio.create_task(a.send(b"large", Region.of(body), deadline_s=10))
            incoming = await b.receive(deadline_s=10)
            assert await incoming.take(deadline_s=10) == [body]
            await sending
            await flood


async def flood_with(channel) -> None:
    while True:
        await channel.send(b"x" * 10_000, deadline_s=0.5)


@needs_ucx
async def test_a_stranger_is_not_let_in(loop_kind, caplog):
    """Neither rubbish nor a set-up that is damaged harms the listener or the next channel."""
    caplog.set_level(logging.INFO, "dvrt.transport")

    async def hello(channel) -> None:
        await channel.send(b"hello", Region.of(bytes(1_000_000)))
        await channel.aclose()

    async with await listen(ADDRESS, hello) as listener:
        port = int(listener.address.rpartition(":")[2])
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n" * 10, random.Random(5).randbytes(1_000_000)):
            await asyncio.to_thread(say_to, port, rubbish)
        async with await connect(listener.address, deadline_s=10) as channel:
            incoming = await channel.receive(deadline_s=10)
            assert await incoming.take(deadline_s=10) == [bytes(1_000_000)]
    assert "was not let in: Corrupted" in caplog.text
    caplog.clear()  # the errors in it hold what their frames do


def say_to(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        try:
            sock.sendall(data)
            while sock.recv(1000):
                pass
        except ConnectionError:
            pass


@needs_ucx
async def test_a_listener_that_says_nothing_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectFailed, match="did not answer"):
            await connect(f"ucx://127.0.0.1:{silent.getsockname()[1]}", deadline_s=0.2)


@needs_ucx
async def test_a_sender_that_breaks_off_frees_the_receiver(loop_kind):
    """It was granted its pieces and never began: its word lets the receiver go at once."""
    async with open_pair(get_transport("ucx"), ADDRESS) as (a, b):
        memory = bytearray(1 << 20)
        a._link.launch = break_off
        sending = asyncio.create_task(a.send(b"", Region.of(bytes(1 << 20))))
        incoming = await b.receive(deadline_s=10)
        with pytest.raises(PeerLost):
            await incoming.into(Region.of(memory), deadline_s=10)
        with pytest.raises(InterruptedError):
            await sending
        await asyncio.wait_for(b.quiet(), 10)
        await asyncio.wait_for(a.quiet(), 10)


def break_off(memory) -> None:
    raise InterruptedError


@needs_ucx
def test_the_environment_of_children_is_left_alone():
    code = (
        "import os; before = {**os.environ}\n"
        "from dvrt.transport.ucx_library import load; load()\n"
        "assert {**os.environ} == before, os.environ.keys() - before.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
