"""The log on disk: what was flushed is there after a crash, what is torn is cut off."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dvrt.buffers import Region
from dvrt.errors import ChannelClosed, ConnectFailed, Corrupted, PeerLost, TransferTimeout
from dvrt.transport import connect, listen

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
