"""Workers that do what the controller tells them and compute nothing, and a stage for them.

Each keeps the contract of ``actors.messages`` towards the controller, or breaks it as told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvrt.actors.actor import Actor, Context
from dvrt.actors.node import Node
from dvrt.cluster.controller import Controller
from dvrt.cluster.outlook import Watchfulness
from dvrt.cluster.plan import plan_cluster
from dvrt.config import LaunchOptions
from dvrt.errors import DvrtError
from dvrt.observe.metrics import Metrics
from dvrt.processes.task_nursery import TaskNursery
from dvrt.processes.worker import Worker
from dvrt.processes.worker_process import WorkerBoot
from dvrt.protocol.messages import (
    CloseStage,
    Connect,
    Connected,
    DropReplicas,
    Joined,
    LoadStage,
    ReplicaSent,
    SendReplica,
    StageLoaded,
    StopWorker,
)
from dvrt.wire import Message
from tests.actors.crew import SECRET, make_node

LOAD_S = 0.3


@dataclass
class Script:
    """What puppets do: by worker name, and what they were told."""

    behaviour: dict[str, str] = field(default_factory=dict)
    told: list[tuple[str, Any]] = field(default_factory=list)
    stages: dict[str, set[tuple[int, int]]] = field(default_factory=dict)

    def of(self, name: str) -> str:
        return self.behaviour.get(name, "")

    def connects(self, actor: str) -> list[Connect]:
        """What was told to the stages of this name, such as w/p0-s1, in its order."""
        return [m for name, m in self.told if name == actor and isinstance(m, Connect)]


script = Script()


class PuppetStage(Actor):
    def __init__(self, worker: str, order: LoadStage) -> None:
        self.worker, self.order = worker, order

    async def receive(self, message: Message, context: Context) -> Message | None:
        script.told.append((f"{self.worker}/{self.me.name}", message))
        if isinstance(message, Connect) and script.of(self.worker) != "confirms nothing":
            await self.node.ref(self.order.controller).tell(
                Connected(worker=self.worker, pipeline=self.order.pipeline, stage=self.order.stage)
            )
        return None


class PuppetReplicas(Actor):
    async def receive(self, message: Message, context: Context) -> Message | None:
        if isinstance(message, DropReplicas):
            return None
        assert isinstance(message, SendReplica)
        return ReplicaSent(ranges=())


class PuppetHost(Actor):
    def __init__(self, name: str) -> None:
        self.name = name
        self.tasks: dict[tuple[int, int], asyncio.Task[None]] = {}

    async def receive(self, message: Message, context: Context) -> Message | None:
        script.told.append((self.name, message))
        match message:
            case LoadStage(pipeline=pipeline, stage=stage):
                self.tasks[pipeline, stage] = asyncio.create_task(self._load(message))
            case CloseStage(pipeline=pipeline, stage=stage):
                self.tasks.pop((pipeline, stage)).cancel()
                script.stages.get(self.name, set()).discard((pipeline, stage))
                await self.node.stop(f"p{pipeline}-s{stage}", "closed")
            case StopWorker(reason=reason):
                self.stop(reason)
        return None

    async def on_stop(self, reason: str) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _load(self, order: LoadStage) -> None:
        await asyncio.sleep(LOAD_S)
        if script.of(self.name) == "fails to load":
            self.fail(DvrtError("the weights are damaged"))
            return
        if script.of(self.name) == "loads for ever":
            return
        actor = PuppetStage(self.name, order)
        me = self.node.spawn(actor, name=f"p{order.pipeline}-s{order.stage}")
        script.stages.setdefault(self.name, set()).add((order.pipeline, order.stage))
        await self.node.ref(order.controller).tell(
            StageLoaded(
                worker=self.name,
                actor=str(me),
                pipeline=order.pipeline,
                stage=order.stage,
                weights_bytes=1,
                kv_bytes=2,
                load_s=LOAD_S,
                device="null",
            )
        )


async def run_puppet(boot: WorkerBoot) -> int:
    """A worker without a lease: it ends when its host does."""
    if script.of(boot.name) == "never joins":
        await asyncio.sleep(1e6)
    async with Node(name=boot.name, address="local://", secret=boot.secret) as node:
        over = asyncio.Event()
        code = 0

        def ended(_: object, why: str) -> None:
            nonlocal code
            code = int(why.startswith("failed"))
            over.set()

        me = node.spawn(PuppetHost(boot.name), name=boot.name)
        replicas = node.spawn(PuppetReplicas(), name="replicas")
        node.watch(me, ended)
        joined = Joined(worker=boot.name, pid=1, host_actor=str(me), replica_actor=str(replicas))
        await node.ref(boot.controller).tell(joined)
        await over.wait()
        return code


@dataclass
class Stage:
    """A cluster of puppets: its controller, and a way to add workers and to end them."""

    controller: Controller
    nursery: TaskNursery
    address: str
    workers: dict[str, Worker]
    metrics: Metrics

    async def spawn(self, name: str) -> Worker:
        boot = WorkerBoot(name=name, controller=self.address, secret=SECRET)
        worker = await self.nursery.spawn("tests.actors.puppets:run_puppet", boot, name=name)
        self.workers[name] = worker
        return worker

    def kill(self, name: str) -> None:
        self.workers[name].kill()

    def states(self) -> dict[str, tuple[str, str]]:
        return {each.name: (each.role, each.state) for each in self.controller.status().workers}

    async def until(self, condition: Callable[[], object], limit_s: float = 100.0) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.01)

    async def serving(self) -> None:
        await self.until(lambda: self.controller.state == "serving")


@asynccontextmanager
async def staged(
    model: Path,
    *,
    ready: bool = True,
    behaviour: dict[str, str] | None = None,
    before: Play | None = None,
    **options: Any,
) -> AsyncIterator[Stage]:
    """``before`` is played when workers can join and there are no places yet."""
    script.behaviour, script.told, script.stages = dict(behaviour or {}), [], {}
    chosen = LaunchOptions.make(model=str(model), device="null", **options)
    metrics = Metrics()
    plan = await asyncio.to_thread(plan_cluster, chosen, model)
    async with make_node("local", "controller") as node, TaskNursery() as nursery:
        controller = Controller(plan, metrics, Watchfulness.of(chosen))
        me = node.spawn(controller, name="controller")
        controller.open()
        stage = Stage(controller, nursery, str(me), {}, metrics)
        if before is not None:
            await before(stage)
        crew = controller.start(stage.spawn, n_external=chosen.external_workers)
        try:
            if ready:
                await controller.wait_ready()
            yield stage
        finally:
            await crew.aclose()
            await node.stop("controller", "the test is over")


Play = Callable[[Stage], Awaitable[None]]
