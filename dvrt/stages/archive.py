"""The archive actor of a worker: keeps its own stages' logs in files, against the loss of all.

A holder of copies like the replica actor, and as far behind the compute; what it acknowledges is
durable. When the disk refuses, it says so once and takes nothing more; what it has stays true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dvrt.transport
from dvrt.actors.actor import Context
from dvrt.buffers import Region
from dvrt.errors import ConnectFailed, ProtocolError, TransportError
from dvrt.kv.digest import digest_of
from dvrt.protocol.messages import (
    ArchiveFailed,
    DropReplicas,
    LogRange,
    ReplicaSent,
    Replicate,
    SendReplica,
)
from dvrt.stages.holder import Holder
from dvrt.stages.log_files import LogFiles
from dvrt.stages.shipping import ship_log
from dvrt.transport.file import FileChannel
from dvrt.wire import Message, encode

T = TypeVar("T")
FILE_BYTES = 64 << 20
"""A file that has grown to this is followed by another one."""
WASTE = 4
"""All is written anew when the files have this many times what is wanted of them."""
FORMER_S = 120.0
"""Logs that only an earlier life wrote are dropped this long after opening: by then a restore would
have asked for them."""
OPEN_LIMIT_S = 10.0
OPEN_TRIES = 8


@dataclass(slots=True, eq=False)
class _Stage:
    """The files of one stage, and the one that is being written."""

    files: LogFiles
    number: int
    channel: FileChannel
    origins: dict[int, str] = field(default_factory=dict)
    opened: float = 0.0
    unflushed: dict[tuple[int, int], int] = field(default_factory=dict)
    written: int = 0


class ArchiveActor(Holder):
    """``directory`` has one directory for each stage, by its layers."""

    def __init__(self, controller: str, directory: Path) -> None:
        super().__init__(controller)
        self._directory = directory
        self._stages: dict[tuple[int, int], _Stage] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._is_off = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="archive")

    async def on_stop(self, reason: str) -> None:
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        for stage in self._stages.values():
            with suppress(TransportError):
                await stage.channel.aclose()
        self._thread.shutdown(wait=False)

    def on_abort(self) -> None:
        for stage in self._stages.values():
            stage.channel.abort()
        self._thread.shutdown(wait=False)

    async def receive(self, message: Message, context: Context) -> Any:
        match message:
            case Replicate():
                await self._guarded(message, context)
            case SendReplica():
                return await self._send(message)
            case DropReplicas(pipeline=pipeline):
                self.dropped.add(pipeline)
                for stage in self._stages.values():
                    stage.origins.pop(pipeline, None)
                    stage.files.index.drop(pipeline)
            case _:
                raise ProtocolError(f"an archive does not take {type(message).__name__}")
        return None

    async def _guarded(self, note: Replicate, context: Context) -> None:
        if self._is_off or note.pipeline in self.dropped:
            return
        data = context.attachments[0] if context.attachments else bytearray()
        try:
            await self._store(note, data)
        except (OSError, TransportError) as error:
            await self._turn_off(error)

    async def _store(self, note: Replicate, data: bytearray) -> None:
        stage = await self._stage(note.first, note.last)
        stage.origins[note.pipeline] = note.origin
        if digest_of([data]) != note.digest:
            await self.say_gap(note.origin, note.ranges)
            return
        record = stage.channel.written_bytes
        await stage.channel.send(encode(note), *([Region.of(data)] if data else []))
        grown = stage.channel.written_bytes - record
        stage.files.sizes[stage.number] = stage.channel.written_bytes
        stage.written += grown
        missing = stage.files.note(note, len(data), file=stage.number, record=record)
        if missing:
            await self.say_gap(note.origin, tuple(missing))
        stage.unflushed[note.pipeline, note.stage] = note.step
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush_all())
        if stage.channel.written_bytes >= FILE_BYTES:
            await self._turn_page(stage)
        elif stage.opened and asyncio.get_running_loop().time() > stage.opened + FORMER_S:
            stage.opened = 0.0
            stage.files.index.drop_former()
            await self._blocking(_remove_unneeded, stage.files, stage.number)

    async def _stage(self, first: int, last: int) -> _Stage:
        stage = self._stages.get((first, last))
        if stage is None:
            directory = self._directory / f"layers-{first}-{last}"
            files = await self._blocking(LogFiles, directory)
            number, channel = await self._open(files)
            stage = self._stages[first, last] = _Stage(files, number, channel)
            stage.opened = asyncio.get_running_loop().time()
        return stage

    async def _open(self, files: LogFiles) -> tuple[int, FileChannel]:
        """Begin a file of its own; another worker with these layers may have been quicker."""
        for n_left in reversed(range(OPEN_TRIES)):
            number = files.next_number
            files.sizes[number] = 0
            try:
                channel = await dvrt.transport.connect(
                    f"file://{files.path(number)}", deadline_s=OPEN_LIMIT_S
                )
            except ConnectFailed:
                if not n_left:
                    raise
            else:
                assert isinstance(channel, FileChannel)
                return number, channel
        raise AssertionError("the last try returns or raises")

    async def _turn_page(self, stage: _Stage) -> None:
        """Begin another file; remove those that nothing is wanted of, or write all anew."""
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        await stage.channel.aclose()
        stage.number, stage.channel = await self._open(stage.files)
        files = stage.files
        wanted = files.index.n_positions * files.entry_bytes
        if files.nbytes > WASTE * max(wanted, FILE_BYTES) and stage.written > WASTE * FILE_BYTES:
            stage.written = 0
            files.index.drop_former()
            for origin in stage.origins.values():
                await self.say_gap(origin, tuple(files.index.live()))
        await self._blocking(_remove_unneeded, files, stage.number)

    async def _flush_all(self) -> None:
        """Make what was written durable, then say so; again for what came meanwhile."""
        try:
            while any(stage.unflushed for stage in self._stages.values()):
                for stage in list(self._stages.values()):
                    steps, stage.unflushed = stage.unflushed, {}
                    if steps:
                        await stage.channel.flush()
                        for (pipeline, number), step in steps.items():
                            await self.say_stored(pipeline, number, step)
        except (OSError, TransportError) as error:
            await self._turn_off(error)
        finally:
            self._flushing = None

    async def _turn_off(self, error: Exception) -> None:
        if self._is_off:
            return
        self._is_off = True
        failed = ArchiveFailed(worker=self.node.name, reason=str(error))
        await self.try_tell(self._controller, failed)

    async def _send(self, order: SendReplica) -> ReplicaSent:
        """What is wanted may have been written in any slot; its sequence tells which it is."""
        try:
            files = (await self._stage(order.first, order.last)).files
        except (OSError, TransportError) as error:
            await self._turn_off(error)
            return ReplicaSent(ranges=())
        sent: list[LogRange] = []
        for index, wanted in enumerate(order.ranges):
            stop = order.trusted(index, files.index.epoch_of(wanted.seq))
            data = await self._blocking(files.read, wanted.seq, stop)
            if data:
                sent.append(
                    await ship_log(
                        self.node.ref(order.to),
                        wanted,
                        data,
                        layers=(order.first, order.last),
                        entry_bytes=files.entry_bytes,
                        sender=self.me.address,
                    )
                )
        return ReplicaSent(ranges=tuple(sent))

    async def _blocking(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)


def _remove_unneeded(files: LogFiles, current: int) -> None:
    with suppress(OSError):
        files.remove_unneeded(current=current)
