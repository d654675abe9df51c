"""The insides of workers that are tasks of this process: what a fault needs to get at."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn, TypeVar

from dvrt.actors.node import Node
from dvrt.buffers import Region
from dvrt.cluster.engine import Engine
from dvrt.errors import OutOfMemory
from dvrt.processes.task_nursery import TaskWorker
from dvrt.stages.archive import ArchiveActor
from dvrt.stages.replicas import ReplicaActor
from dvrt.stages.stage import StageActor
from dvrt.transport.records import pack_record

A = TypeVar("A")


class Inside:
    """The workers of an engine that was launched ``in_process``."""

    def __init__(self, engine: Engine) -> None:
        self._crew = engine._controller._overseer._crew

    @property
    def living(self) -> list[str]:
        """Workers that run, whether they have joined or not, oldest first."""
        return [name for name, worker in self._crew._workers.items() if worker.exit is None]

    def kill(self, name: str) -> None:
        """As a power cut would."""
        self._crew.kill(name)

    def cut(self, name: str) -> None:
        """Break all links of the worker."""
        for node in self._nodes(name):
            for address in list(node._peers._links):
                node.cut(address, "it was cut on purpose")

    def unlink(self, name: str, address: str) -> None:
        """Break the links of the worker to one node."""
        for node in self._nodes(name):
            node.cut(address, "it was cut on purpose")

    def starve(self, name: str) -> bool:
        """The next step of one of its stages finds no memory; False if it has none."""
        for stage in self.actors(name, StageActor):
            if stage._executor is not None:
                executor: Any = stage._executor
                executor.execute = _starved
                return True
        return False

    def hang(self, name: str) -> bool:
        """What its stages are to compute from now on is never done; False if it has none."""
        hangs = False
        for stage in self.actors(name, StageActor):
            if stage._executor is not None:
                compute: Any = stage._compute
                compute.submit = _never_done
                hangs = True
        return hangs

    def address(self, name: str) -> str:
        """Of the worker's node; empty while it has none."""
        return next((node.address for node in self._nodes(name)), "")

    def rot(self, name: str, pick: int) -> bool:
        """One byte of a copy that the worker keeps changes; False if it keeps none."""
        copies = [
            copy
            for actor in self.actors(name, ReplicaActor)
            for shelf in actor._shelves.values()
            for copy in shelf.copies.values()
            if copy.nbytes
        ]
        if not copies:
            return False
        rng = random.Random(pick)
        data = rng.choice(copies).data
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return True

    def fill_disk(self, name: str) -> bool:
        """The files of the worker's logs find no more room; False if it writes none."""
        channels: list[Any] = [
            stage.channel
            for archive in self.actors(name, ArchiveActor)
            for stage in archive._stages.values()
        ]
        for channel in channels:
            channel._append = partial(_append_half, channel)
        return bool(channels)

    def actors(self, name: str, kind: type[A]) -> Iterator[A]:
        """The worker's actors of this class."""
        for node in self._nodes(name):
            for cell in list(node._cells.values()):
                if isinstance(cell.actor, kind):
                    yield cell.actor

    def _nodes(self, name: str) -> list[Node]:
        worker = self._crew._workers.get(name)
        return list(worker._nodes) if isinstance(worker, TaskWorker) else []


def _append_half(channel: Any, header: bytes, regions: tuple[Region, ...]) -> NoReturn:
    """As a disk that has room for the beginning of a record."""
    record = pack_record(header, [region.view() for region in regions])
    os.pwrite(channel._fd, record[: len(record) // 2], channel._end)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _never_done(*_: object, **__: object) -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _starved(*_: object) -> NoReturn:
    raise OutOfMemory("the device", needed_bytes=1 << 40, free_bytes=0)
