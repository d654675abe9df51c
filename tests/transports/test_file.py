"""The log on disk: what was flushed is there after a crash, what is torn is cut off."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dvrt.buffers import Region
from dvrt.errors import ChannelClosed, ConnectFailed, Corrupted, PeerLost, TransferTimeout
from dvrt.transport import connect, listen
from dvrt.transport.framing import pack_head

MESSAGES = [(b"a", [b"1" * 100, b""]), (b"", []), (b"c" * 5000, [b"3" * 70_000, b"4"])]


async def open_log(path: Path):
    return await connect(f"file://{path}", deadline_s=10)


async def send_all(log, messages=MESSAGES) -> None:
    for header, parts in messages:
        await log.send(header, *[Region.of(part) for part in parts], deadline_s=10)


async def receive_all(log) -> list[tuple[bytes, list[bytearray]]]:
    got = []
    while log.has_more:
        incoming = await log.receive(deadline_s=10)
        got.append((incoming.header, await incoming.take(deadline_s=10)))
    return got


async def test_what_was_sent_is_received_after_opening_again(tmp_path, loop_kind):
    async with await open_log(tmp_path / "log") as log:
        await send_all(log)
        assert log.durable_bytes == 0
        await log.flush(deadline_s=10)
        assert log.durable_bytes == (tmp_path / "log").stat().st_size
        assert await receive_all(log) == MESSAGES
    async with await open_log(tmp_path / "log") as log:
        assert (log.torn_bytes, await receive_all(log)) == (0, MESSAGES)
        with pytest.raises(TransferTimeout):
            await log.receive(deadline_s=0.01)
        receiving = asyncio.create_task(log.receive(deadline_s=10))
        await log.send(b"more", deadline_s=10)
        assert (await receiving).header == b"more"


async def test_a_log_torn_anywhere_goes_on_after_its_last_whole_record(tmp_path):
    path = tmp_path / "log"
    ends = [0]
    async with await open_log(path) as log:
        for message in MESSAGES:
            await send_all(log, [message])
            ends.append(path.stat().st_size)
    whole, draw = path.read_bytes(), random.Random(5)
    for cut in {1, 23, 24, 39, 40, *ends, *(draw.randrange(len(whole)) for _ in range(30))}:
        tail = b"" if cut % 2 else bytes(50)
        path.write_bytes(whole[:cut] + tail)
        kept = sum(end <= cut for end in ends) - 1
        async with await open_log(path) as log:
            assert log.torn_bytes == cut + len(tail) - ends[kept]
            assert await receive_all(log) == MESSAGES[:kept]
            await log.send(b"next", deadline_s=10)
            assert (await receive_all(log))[-1][0] == b"next"


async def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "log"
    async with await open_log(path) as log:
        await send_all(log)
        data = bytearray(path.read_bytes())
        for at in range(0, 200, 7):
            harmed = bytearray(data)
            harmed[at] ^= 1
            path.write_bytes(harmed)
            async with _reader(path) as reader:
                with pytest.raises(Corrupted):
                    await receive_all(reader)
        path.write_bytes(data)


async def damaged_log(path: Path, at: int) -> tuple[bytes, list[int]]:
    """A log of MESSAGES, all durable, with one bit flipped; its bytes and its records' ends."""
    ends = []
    async with await open_log(path) as log:
        for message in MESSAGES:
            await send_all(log, [message])
            await log.flush(deadline_s=10)
            ends.append(log.durable_bytes)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return bytes(data), ends


@pytest.mark.parametrize("at", [0, 9, 20, 25, 41, 100])
async def test_durable_records_behind_damage_are_put_aside(at, tmp_path, caplog, loop_kind):
    path = tmp_path / "log"
    data, ends = await damaged_log(path, at)
    async with await open_log(path) as log:
        assert (log.torn_bytes, log.has_more) == (len(data), False)
        await log.send(b"next", deadline_s=10)
        assert (await receive_all(log)) == [(b"next", [])]
    aside = tmp_path / "log.cut-0"
    assert aside.read_bytes() == data
    assert [(r.name, r.levelname) for r in caplog.records] == [("dvrt.transport", "WARNING")]
    assert f"{path}: damaged at byte 0" in caplog.text
    assert f"{len(data)} bytes that were cut off are kept in {aside}" in caplog.text
    aside.write_bytes(data[ends[0] :])  # what is whole can be opened again
    async with await open_log(aside) as log:
        assert await receive_all(log) == MESSAGES[1:]


async def test_what_was_put_aside_before_is_never_overwritten(tmp_path):
    path = tmp_path / "log"
    data, ends = await damaged_log(path, at=0)
    for number in range(3):
        path.write_bytes(data)
        await (await open_log(path)).aclose()
        assert len(list(tmp_path.iterdir())) == number + 2
    asides = [tmp_path / f"log.cut-0{suffix}" for suffix in ("", "-2", "-3")]
    assert [aside.read_bytes() for aside in asides] == [data] * 3
    data = bytearray(data)
    data[0] ^= 1
    data[ends[0] + 20] ^= 1
    path.write_bytes(data)
    async with await open_log(path) as log:
        assert (log.written_bytes, await receive_all(log)) == (ends[0], MESSAGES[:1])
    assert (tmp_path / f"log.cut-{ends[0]}").read_bytes() == data[ends[0] :]


async def test_a_torn_end_alone_is_not_worth_a_file(tmp_path, caplog):
    """Not even one that has the look of records: what a magic begins must be whole."""
    path = tmp_path / "log"
    data, ends = await damaged_log(path, at=-1)
    lie = b"dvlg" + bytes(4) + struct.pack("!Q", 16) + bytes(8) + pack_head(b"", ())
    torn = data + lie + b"dvlg" * 1000
    path.write_bytes(torn)
    async with await open_log(path) as log:
        assert await receive_all(log) == MESSAGES[:2]
        assert log.torn_bytes == len(torn) - ends[1]
    assert [each.name for each in tmp_path.iterdir()] == ["log"]
    assert caplog.records == []


@pytest.mark.parametrize("size", range(250, 280))
async def test_a_record_is_found_wherever_a_piece_of_the_search_ends(size, tmp_path, monkeypatch):
    monkeypatch.setattr("dvrt.transport.records._SCAN_BYTES", 64)
    path = tmp_path / "log"
    async with await open_log(path) as log:
        await log.send(b"", Region.of(bytes(size)), deadline_s=10)
        await log.send(b"found", deadline_s=10)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    await (await open_log(path)).aclose()
    assert (tmp_path / "log.cut-0").read_bytes() == data


async def test_nothing_is_cut_off_that_cannot_be_put_aside(tmp_path, monkeypatch):
    path = tmp_path / "log"
    data, _ = await damaged_log(path, at=0)
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if "cut-" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "no space")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConnectFailed, match="No space left on device"):
        await open_log(path)
    assert [each.name for each in tmp_path.iterdir()] == ["log"]
    assert path.read_bytes() == data


async def test_a_log_that_cannot_be_cut_leaves_no_copy(tmp_path, monkeypatch):
    """Else each try would leave one more."""
    path = tmp_path / "log"
    data, _ = await damaged_log(path, at=0)

    def refuse(fd: int, length: int) -> None:
        raise OSError(5, "an error of the disk")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(ConnectFailed):
        await open_log(path)
    assert [each.name for each in tmp_path.iterdir()] == ["log"]
    assert path.read_bytes() == data


async def test_what_is_put_aside_is_durable_before_the_log_is_cut(tmp_path, monkeypatch):
    await damaged_log(tmp_path / "log", at=0)
    steps = []
    for name in ("fsync", "ftruncate"):
        monkeypatch.setattr(os, name, noting(steps, name))
    await (await open_log(tmp_path / "log")).aclose()
    assert steps[:3] == ["fsync log.cut-0", f"fsync {tmp_path.name}", "ftruncate log"]


def noting(steps: list[str], name: str):
    real = getattr(os, name)

    def call(fd: int, *args: int) -> None:
        steps.append(f"{name} {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        real(fd, *args)

    return call


@pytest.mark.parametrize("end", ["abort", "cancel"])
@pytest.mark.parametrize("way", ["send", "into"])
async def test_memory_lives_as_long_as_the_disk_works_on_it(
    way, end, tmp_path, monkeypatch, loop_kind
):
    async with await open_log(tmp_path / "log") as log:
        await log.send(b"", Region.of(b"x" * 5000), deadline_s=10)
        incoming = await log.receive(deadline_s=10)
        began, goes_on = threading.Event(), threading.Event()
        for name in ("preadv", "pwritev"):
            monkeypatch.setattr(os, name, held_up(began, goes_on))
        array = np.zeros(5000, np.uint8)
        owner = weakref.ref(array)
        region = Region(array.ctypes.data, 5000, owner=array)
        move = partial(log.send, b"") if way == "send" else incoming.into
        moving = asyncio.create_task(move(region))
        del array, region
        try:
            while not began.is_set():
                await asyncio.sleep(0.001)
            log.abort() if end == "abort" else moving.cancel()
            await asyncio.wait([moving])
            assert moving.cancelled() or isinstance(moving.exception(), ChannelClosed)
            del moving
            gc.collect()
            assert owner() is not None
        finally:
            goes_on.set()
        await log.quiet()
        log.abort()
    if end == "abort":
        async with asyncio.timeout(10):  # the thread lets go a moment after it has answered
            while owner() is not None:
                await asyncio.sleep(0.001)
                gc.collect()


def held_up(began: threading.Event, goes_on: threading.Event):
    """A call that moves nothing, lest a test that fails touches memory that is gone."""

    def slow(fd: int, buffers: list[memoryview], offset: int) -> int:
        began.set()
        goes_on.wait(10)
        return sum(len(buffer) for buffer in buffers)

    return slow


def _reader(path: Path):
    from dvrt.transport.file import FileChannel

    fd = os.open(path, os.O_RDWR)
    return FileChannel(fd, f"file://{path}", path.stat().st_size, 0)


async def test_a_writer_that_is_killed_leaves_what_it_flushed(tmp_path):
    path = tmp_path / "log"
    code = (
        "import asyncio, sys\n"
        "from dvrt.buffers import Region\n"
        "from dvrt.transport import connect\n"
        "async def main():\n"
        "    log = await connect('file://' + sys.argv[1], deadline_s=10)\n"
        "    for number in range(10**9):\n"
        "        await log.send(b'%d' % number, Region.of(bytes([number % 256]) * 10_000))\n"
        "        await log.flush()\n"
        "        print(number, flush=True)\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            flushed = [int(process.stdout.readline()) for _ in range(20)]
            with pytest.raises(ConnectFailed):
                await open_log(path)
        finally:
            process.send_signal(signal.SIGKILL)
    async with await open_log(path) as log:
        got = await receive_all(log)
    assert len(got) > flushed[-1]
    assert all(
        (header, parts) == (b"%d" % i, [bytes([i % 256]) * 10_000])
        for i, (header, parts) in enumerate(got)
    )


async def test_abort_and_close(tmp_path):
    log = await open_log(tmp_path / "log")
    receiving = asyncio.create_task(log.receive())
    await asyncio.sleep(0)
    log.abort()
    with pytest.raises(ChannelClosed):
        await receiving
    with pytest.raises(ChannelClosed):
        await log.flush()
    await log.aclose()


async def test_a_closed_log_can_be_opened_although_a_child_still_holds_its_file(tmp_path):
    """As between fork and exec of any program that is started meanwhile."""
    log = await open_log(tmp_path / "log")
    held = os.dup(log._fd)
    try:
        await log.aclose()
        await (await open_log(tmp_path / "log")).aclose()
    finally:
        os.close(held)


async def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ConnectFailed, match="No such file or directory"):
        await open_log(tmp_path / "missing" / "log")
    with pytest.raises(ConnectFailed, match="not listened at"):
        await listen(f"file://{tmp_path}/log", None)
    async with await open_log(tmp_path / "log"):
        with pytest.raises(ConnectFailed, match="temporarily unavailable"):
            await open_log(tmp_path / "log")


async def test_a_full_disk_breaks_the_log(tmp_path, monkeypatch):
    async with await open_log(tmp_path / "log") as log:

        def full(*_: object) -> int:
            raise OSError(28, "no space")

        monkeypatch.setattr(os, "pwritev", full)
        with pytest.raises(PeerLost, match="No space left on device"):
            await log.send(b"x")
        with pytest.raises(PeerLost):
            await log.flush()


async def test_an_error_without_a_number_is_told_in_its_own_words(tmp_path, monkeypatch):
    def fails(*_: object) -> int:
        raise OSError("the driver is unwell")

    async with await open_log(tmp_path / "log") as log:
        monkeypatch.setattr(os, "pwritev", fails)
        with pytest.raises(PeerLost, match="the driver is unwell"):
            await log.send(b"x")
    monkeypatch.setattr(os, "ftruncate", fails)
    with pytest.raises(ConnectFailed, match="the driver is unwell"):
        await open_log(tmp_path / "log")


async def test_a_flush_that_nobody_waits_for_any_more_still_breaks_the_log(tmp_path, monkeypatch):
    """The kernel reports what it could not write once: the next flush would promise too much."""
    log = await open_log(tmp_path / "log")
    flush, is_slow = os.fdatasync, threading.Event()

    def fails_late(fd: int) -> None:
        is_slow.wait(10)
        monkeypatch.setattr(os, "fdatasync", flush)
        raise OSError(5, "an error of the disk")

    monkeypatch.setattr(os, "fdatasync", fails_late)
    await log.send(b"x")
    with pytest.raises(TransferTimeout):
        await log.flush(deadline_s=0.01)
    is_slow.set()
    await log.quiet()
    with pytest.raises(PeerLost, match="Input/output error"):
        await log.flush()
    assert log.durable_bytes == 0
    await log.aclose()


async def test_closing_says_that_the_last_could_not_be_made_durable(tmp_path, monkeypatch):
    log = await open_log(tmp_path / "log")
    await log.send(b"x")

    def fails(fd: int) -> None:
        raise OSError(5, "an error of the disk")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(PeerLost, match="Input/output error"):
        await log.aclose()
