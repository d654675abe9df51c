"""Real workers driven by hand, message by message: a desk in the place of the controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dvrt.actors.actor import Actor, Context
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.control.steps import Adopt, Chunk, Decode, Open, Step, StepDone
from dvrt.models.spec import StageSpec
from dvrt.models.split import split_evenly
from dvrt.processes.task_nursery import TaskNursery, TaskWorker
from dvrt.processes.worker_process import WorkerBoot
from dvrt.protocol.messages import (
    Connect,
    Connected,
    Forward,
    Joined,
    LoadStage,
    PipelineAddress,
    StageAddress,
    StageLoaded,
)
from dvrt.requests import SamplingParams
from dvrt.wire import Message, encode

SECRET = b"a secret of the tests"
VOCAB, CONTEXT, CHUNK = 97, 64, 8
GREEDY = SamplingParams(temperature=0.0)
M = TypeVar("M", bound=Message)


class Desk(Actor):
    """Keeps everything that it is told."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.regions: list[list[bytearray]] = []
        self._news = asyncio.Event()

    async def receive(self, message: Message, context: Context) -> None:
        self.got.append(message)
        self.regions.append(context.attachments)
        self._news.set()

    def all(self, kind: type[M]) -> list[M]:
        return [each for each in self.got if isinstance(each, kind)]

    async def wait_for(
        self, kind: type[M], matches: Callable[[M], bool] = lambda _: True, limit_s: float = 10
    ) -> M:
        """The first message of this kind that matches, from the past or to come."""
        async with asyncio.timeout(limit_s):
            while True:
                self._news.clear()
                for each in self.all(kind):
                    if matches(each):
                        return each
                await self._news.wait()


@dataclass(slots=True)
class Line:
    """A pipeline whose stages are loaded, first to last, each at a worker of its own."""

    id: int
    stages: tuple[StageLoaded, ...]
    cuts: tuple[tuple[int, int], ...]
    workers: tuple[str, ...]

    @property
    def address(self) -> PipelineAddress:
        return PipelineAddress(
            pipeline=self.id,
            stages=tuple(
                StageAddress(actor=stage.actor, first=first, stop=stop)
                for stage, (first, stop) in zip(self.stages, self.cuts, strict=True)
            ),
        )


@dataclass(slots=True)
class Works:
    """Workers as tasks, and the desk that they report to."""

    node: Node
    desk: Desk
    me: ActorRef
    nursery: TaskNursery
    scheme: str
    n_layers: int
    spec: dict[str, Any]
    joined: dict[str, Joined] = field(default_factory=dict)
    workers: dict[str, TaskWorker] = field(default_factory=dict)
    step_id: int = 0
    epoch: int = 0

    async def worker(self, name: str) -> Joined:
        address = "local://" if self.scheme == "local" else "tcp://127.0.0.1:0"
        boot = WorkerBoot(name=name, controller=str(self.me), secret=SECRET, address=address)
        target = "dvrt.stages.assembly:run_stage_worker"
        self.workers[name] = await self.nursery.spawn(target, boot, name=name)
        self.joined[name] = await self.desk.wait_for(Joined, lambda each: each.worker == name)
        return self.joined[name]

    async def load(
        self, worker: str, pipeline: int, stage: int, n_stages: int, cut: tuple[int, int]
    ) -> StageLoaded:
        if worker not in self.joined:
            await self.worker(worker)
        order = LoadStage(
            controller=str(self.me),
            pipeline=pipeline,
            stage=stage,
            n_stages=n_stages,
            spec=StageSpec(first=cut[0], stop=cut[1], n_layers=self.n_layers, **self.spec),
            vocab_size=VOCAB,
            null_step_s=0.0,
        )
        await self.node.ref(self.joined[worker].host_actor).tell(order)
        return await self.desk.wait_for(
            StageLoaded, lambda e: (e.worker, e.pipeline, e.stage) == (worker, pipeline, stage)
        )

    async def line(self, pipeline: int, n_stages: int) -> Line:
        """A pipeline that nobody has connected yet."""
        cuts = split_evenly(self.n_layers, n_stages)
        names = tuple(f"w{pipeline}-{stage}" for stage in range(n_stages))
        loaded = [
            await self.load(name, pipeline, stage, n_stages, cut)
            for stage, (name, cut) in enumerate(zip(names, cuts, strict=True))
        ]
        return Line(pipeline, tuple(loaded), cuts, names)

    async def connect(
        self,
        line: Line,
        targets: Sequence[Line] = (),
        replicas: Mapping[int, tuple[str, ...]] | None = None,
    ) -> None:
        """Tell every stage its neighbours, and wait until all have said so."""
        before = len(self.desk.all(Connected))
        following = [*(stage.actor for stage in line.stages[1:]), str(self.me)]
        for number, (stage, after) in enumerate(zip(line.stages, following, strict=True)):
            await self.node.ref(stage.actor).tell(
                Connect(
                    next_actor=after,
                    targets=tuple(each.address for each in targets),
                    replicas=(replicas or {}).get(number, ()),
                )
            )
        async with asyncio.timeout(10):
            while len(self.desk.all(Connected)) < before + len(line.stages):
                await asyncio.sleep(0.001)

    async def run(self, line: Line, **content: Any) -> StepDone:
        """Send one step through a pipeline and wait for its end."""
        number = await self.send(line, **content)
        return await self.desk.wait_for(StepDone, lambda done: done.id == number)

    async def send(self, line: Line, **content: Any) -> int:
        self.step_id += 1
        step = Step(id=self.step_id, pipeline=line.id, **{"microbatch": 0, **content})
        await self.node.ref(line.stages[0].actor).tell(Forward(step=encode(step)))
        return self.step_id

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    async def prompt(
        self, line: Line, slot: int, seq: int, tokens: Sequence[int], **shipping: Any
    ) -> tuple[int, int]:
        """Compute a prompt in chunks; its epoch and its first token. ``shipping``: to, target."""
        epoch, drawn = self.next_epoch(), -1
        opens = (Open(slot=slot, seq=seq, epoch=epoch, sample=0, sampling=GREEDY),)
        for start in range(0, len(tokens), CHUNK):
            part = tuple(tokens[start : start + CHUNK])
            is_last = start + CHUNK >= len(tokens)
            chunk = Chunk(
                slot=slot,
                seq=seq,
                epoch=epoch,
                start=start,
                tokens=part,
                draws=(0,) if is_last else (),
                commits=is_last and "to" in shipping,
                **shipping,
            )
            done = await self.run(line, microbatch=slot // 4, opens=opens, chunks=(chunk,))
            opens = ()
            if is_last:
                drawn = done.firsts[0][0].id  # type: ignore[union-attr]
        return epoch, drawn

    async def decode(
        self, line: Line, slot: int, seq: int, epoch: int, position: int, token: int, n: int
    ) -> list[int]:
        """``n`` tokens more, the known one at ``position`` first."""
        out: list[int] = []
        for _ in range(n):
            item = Decode(slot=slot, seq=seq, epoch=epoch, position=position, token=token)
            done = await self.run(line, microbatch=slot // 4, decodes=(item,))
            position, token = position + 1, done.decoded[0].id  # type: ignore[union-attr]
            out.append(token)
        return out

    async def adopt(
        self, line: Line, slot: int, seq: int, n: int, token: int, n_new: int, **changes: Any
    ) -> list[int]:
        """Go on with a log of ``n`` entries whose next token is known; ``n_new`` tokens of it."""
        epoch = self.next_epoch()
        adopt = Adopt(
            slot=slot, seq=seq, epoch=epoch, n_tokens=n, sample=0, sampling=GREEDY, **changes
        )
        item = Decode(slot=slot, seq=seq, epoch=epoch, position=n, token=token)
        done = await self.run(line, microbatch=slot // 4, adopts=(adopt,), decodes=(item,))
        first = done.decoded[0].id  # type: ignore[union-attr]
        return [first, *await self.decode(line, slot, seq, epoch, n + 1, first, n_new - 1)]


@asynccontextmanager
async def works(
    *, scheme: str = "local", n_layers: int = 5, model: Path | None = None, **changes: Any
) -> AsyncIterator[Works]:
    """A desk and no workers yet; of a checkpoint on the CPU, or of the hash model."""
    address = "local://" if scheme == "local" else "tcp://127.0.0.1:0"
    spec: dict[str, Any] = {
        "directory": "" if model is None else str(model),
        "dtype": "float32",
        "n_microbatches": 2,
        "batch_size": 4,
        "max_context": CONTEXT,
        "chunk_tokens": CHUNK,
        "device": "null" if model is None else "cpu",
        **changes,
    }
    async with Node(name="desk", secret=SECRET, address=address, strict=True) as node:
        desk = Desk()
        me = node.spawn(desk, name="desk")
        async with TaskNursery() as nursery:
            yield Works(node, desk, me, nursery, scheme, n_layers, spec)
