"""The files of a stage's logs: what they say after torn ends, damage, rewriting and a full disk."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dvrt.actors.actor import Actor, Context
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.kv.digest import digest_of
from dvrt.protocol.messages import (
    ArchiveFailed,
    Commit,
    Entries,
    LogRange,
    ReplicaGap,
    ReplicaSent,
    Replicate,
    Replicated,
    SendReplica,
)
from dvrt.stages import archive
from dvrt.stages.archive import ArchiveActor
from dvrt.stages.log_files import LogFiles
from dvrt.stages.log_index import LogIndex
from dvrt.transport.file import FileChannel

ENTRY = 16


def entries(seq: int, start: int, stop: int, epoch: int = 1) -> bytes:
    """The entry at a position is a function of its name."""
    return b"".join(
        random.Random(f"{seq} {epoch} {position}").randbytes(ENTRY)
        for position in range(start, stop)
    )


def note(*ranges: LogRange, step: int = 0, pipeline: int = 0) -> tuple[Replicate, bytes]:
    data = b"".join(entries(each.seq, each.start, each.stop, each.epoch) for each in ranges)
    replicate = Replicate(
        pipeline=pipeline,
        stage=1,
        origin="",
        first=2,
        last=4,
        step=step,
        ranges=ranges,
        digest=digest_of([data]),
    )
    return replicate, data


def span(slot: int, seq: int, start: int, stop: int, epoch: int = 1) -> LogRange:
    return LogRange(slot=slot, seq=seq, epoch=epoch, start=start, stop=stop)


class Listener(Actor):
    """Takes whatever comes: as the stage that hears of gaps and gets logs, and as controller."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.logs: dict[int, bytearray] = {}
        self.news = asyncio.Event()

    async def receive(self, message: Any, context: Context) -> None:
        self.heard.append(message)
        if isinstance(message, Entries):
            self.logs.setdefault(message.seq, bytearray()).extend(context.attachments[0])
        self.news.set()

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.heard if isinstance(each, kind)]

    async def wait(self, kind: type, n: int = 1) -> list[Any]:
        async with asyncio.timeout(5):
            while len(self.of(kind)) < n:
                self.news.clear()
                await self.news.wait()
        return self.of(kind)


@asynccontextmanager
async def archived(directory: Path) -> AsyncIterator[tuple[ActorRef, Listener]]:
    async with Node(name="worker", secret=b"s", address="local://") as node:
        listener = Listener()
        me = node.spawn(listener, name="listener")
        yield node.spawn(ArchiveActor(me.address, directory), name="archive"), listener


async def tell(archive: ActorRef, listener: Listener, *ranges: LogRange, step: int = 0) -> None:
    replicate, data = note(*ranges, step=step)
    fields = {name: getattr(replicate, name) for name in Replicate.__slots__}
    await archive.tell(Replicate(**{**fields, "origin": listener.me.address}), data)


async def fetch(archive: ActorRef, listener: Listener, *wanted: LogRange) -> tuple[LogRange, ...]:
    order = SendReplica(pipeline=7, stage=0, to=listener.me.address, ranges=wanted, first=2, last=4)
    sent = await archive.ask(order, deadline_s=5)
    assert isinstance(sent, ReplicaSent)
    await listener.wait(Commit, len(sent.ranges))
    return sent.ranges


async def test_another_life_gets_back_what_was_acknowledged(tmp_path: Path) -> None:
    async with archived(tmp_path) as (first, listener):
        await tell(first, listener, span(0, 10, 0, 5), span(1, 11, 0, 300), step=1)
        await tell(first, listener, span(0, 10, 5, 9), step=2)
        async with asyncio.timeout(5):
            while listener.of(Replicated)[-1:] == [] or listener.of(Replicated)[-1].step != 2:
                listener.news.clear()
                await listener.news.wait()
    async with archived(tmp_path) as (second, listener):
        wanted = (span(4, 10, 0, 8, epoch=50), span(5, 11, 0, 400, epoch=51), span(6, 12, 0, 3))
        sent = await fetch(second, listener, *wanted)
        assert sent == (span(4, 10, 0, 8, epoch=50), span(5, 11, 0, 300, epoch=51))
        assert listener.logs == {10: entries(10, 0, 8), 11: entries(11, 0, 300)}


async def test_gaps_and_damage_on_the_way_are_asked_for_again(tmp_path: Path) -> None:
    async with archived(tmp_path) as (keeper, listener):
        await tell(keeper, listener, span(0, 10, 4, 8))
        (gap,) = await listener.wait(ReplicaGap)
        assert gap == ReplicaGap(holder=keeper.address, ranges=(span(0, 10, 4, 8),))
        replicate, data = note(span(0, 10, 0, 4))
        fields = {name: getattr(replicate, name) for name in Replicate.__slots__}
        spoiled = {**fields, "origin": listener.me.address}
        await keeper.tell(Replicate(**spoiled), data[:-1] + b"?")
        await listener.wait(ReplicaGap, 2)
        assert await fetch(keeper, listener, span(0, 10, 0, 8)) == ()


@pytest.mark.parametrize("cut", [1, 20, 100, 200])
async def test_a_torn_end_costs_the_last_record_only(tmp_path: Path, cut: int) -> None:
    async with archived(tmp_path) as (first, listener):
        await tell(first, listener, span(0, 10, 0, 5))
        await tell(first, listener, span(0, 10, 5, 30))
        await listener.wait(Replicated)
    (path,) = (tmp_path / "layers-2-4").glob("*.log")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    async with archived(tmp_path) as (second, listener):
        sent = await fetch(second, listener, span(0, 10, 0, 30))
        assert sent == (span(0, 10, 0, 5),)
        assert listener.logs[10] == entries(10, 0, 5)


async def test_a_damaged_record_is_not_believed(tmp_path: Path) -> None:
    async with archived(tmp_path) as (first, listener):
        for start in range(0, 30, 10):
            await tell(first, listener, span(0, 10, start, start + 10))
        await listener.wait(Replicated)
    (path,) = (tmp_path / "layers-2-4").glob("*.log")
    data = bytearray(path.read_bytes())
    data[data.index(entries(10, 15, 16))] ^= 1
    path.write_bytes(data)
    async with archived(tmp_path) as (second, listener):
        assert await fetch(second, listener, span(0, 10, 0, 30)) == (span(0, 10, 0, 10),)
        assert listener.logs[10] == entries(10, 0, 10)


async def test_a_full_disk_is_told_once_and_what_is_there_stays_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async with archived(tmp_path) as (keeper, listener):
        await tell(keeper, listener, span(0, 10, 0, 5), step=1)
        await listener.wait(Replicated)
        with monkeypatch.context() as patch:
            patch.setattr(FileChannel, "_append", refuse)
            for start in range(5, 9):
                await tell(keeper, listener, span(0, 10, start, start + 1), step=start)
            (failed,) = await listener.wait(ArchiveFailed)
        assert failed.worker == "worker"
        assert "No space left" in failed.reason
        await tell(keeper, listener, span(0, 10, 5, 9))
        assert await fetch(keeper, listener, span(0, 10, 0, 9)) == (span(0, 10, 0, 5),)
        assert len(listener.of(ArchiveFailed)) == 1
        assert len(listener.of(Replicated)) == 1


async def test_a_directory_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with archived(tmp_path / "file") as (keeper, listener):
        await tell(keeper, listener, span(0, 10, 0, 5))
        (failed,) = await listener.wait(ArchiveFailed)
        assert "Not a directory" in failed.reason


async def test_files_do_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long log among many short ones: it is asked for anew, and the old files go."""
    monkeypatch.setattr(archive, "FILE_BYTES", 4096)
    async with archived(tmp_path) as (keeper, listener):
        length = 0
        for i in range(400):
            n_gaps = len(listener.of(ReplicaGap))
            await tell(
                keeper, listener, span(0, 10, length, length + 1), span(1, 100 + i, 0, 20), step=i
            )
            length += 1
            assert await fetch(keeper, listener) == ()
            if len(listener.of(ReplicaGap)) > n_gaps:
                await tell(keeper, listener, span(0, 10, 0, length), step=i)
        await fetch(keeper, listener, span(3, 10, 0, length, epoch=9))
        assert listener.logs[10] == entries(10, 0, length)
        assert listener.of(ReplicaGap)
        sizes = [path.stat().st_size for path in (tmp_path / "layers-2-4").iterdir()]
        assert sum(sizes) < 14 * 4096 < 400 * 20 * ENTRY


def test_the_index_agrees_with_a_plain_model() -> None:
    """Random appends, truncations under new epochs, rewrites and reuse of slots."""
    for seed in range(60):
        rng = random.Random(seed)
        index, epoch = LogIndex(), 0
        model: dict[int, tuple[int, list[int]]] = {}
        owner: dict[int, int] = {}
        for record in range(80):
            slot = rng.randrange(3)
            if slot not in owner or rng.random() < 0.1:
                model.pop(owner.get(slot, -1), None)
                epoch += 1
                owner[slot] = 1000 + record
                model[owner[slot]] = (epoch, [])
            seq = owner[slot]
            log_epoch, held = model[seq]
            if held and rng.random() < 0.2:
                epoch += 1
                log_epoch, held = epoch, held[: rng.randrange(len(held) + 1)]
            start = len(held) if rng.random() < 0.8 else rng.randrange(len(held) + 1)
            is_new = log_epoch != model[seq][0]
            start = len(held) if is_new else start
            stop = start + rng.randrange(4)
            tail = [] if is_new else held[stop:]
            held = [*held[:start], *[record] * (stop - start), *tail]
            model[seq] = (log_epoch, held)
            each = span(slot, seq, start, stop, epoch=log_epoch)
            assert index.add(each, pipeline=0, file=0, record=record, at=0, entry_bytes=ENTRY)
            for name, (_, expected) in model.items():
                pieces = index.pieces(name, 10_000, ENTRY)
                got = [piece.record for piece in pieces for _ in range(piece.stop - piece.start)]
                assert got == expected
                assert all(p.stop == q.start for p, q in pairwise(pieces))


def test_files_that_nobody_can_read_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.log").write_text("not ours")
    (tmp_path / "00000003.log").write_bytes(b"rubbish" * 100)
    files = LogFiles(tmp_path)
    assert files.read(10, 5) == b""
    assert files.next_number == 4
    files.remove_unneeded(current=4)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.log"]
