"""The host actor of a worker: makes stages as it is told to, and ends with the first that fails."""

from __future__ import annotations

import gc
from pathlib import Path

from dvrt.actors.actor import Actor, Context
from dvrt.actors.cell import FAILED
from dvrt.actors.node import household
from dvrt.actors.ref import ActorRef
from dvrt.errors import ProtocolError, StageFailed
from dvrt.protocol.claims import Survey, Surveyed
from dvrt.protocol.messages import ARCHIVE, REPLICAS, CloseStage, LoadStage, StopWorker, WarmUp
from dvrt.stages.archive import ArchiveActor
from dvrt.stages.holder import Holder
from dvrt.stages.holdings import Holding, MakeComputeOn
from dvrt.stages.replicas import ReplicaActor
from dvrt.stages.stage import MakeExecutor, StageActor
from dvrt.stages.warmth import Prepare, Warmth
from dvrt.wire import Message


class HostActor(Actor):
    """The stages of one worker, several of them while a split changes."""

    def __init__(
        self,
        worker: str,
        controller: str,
        *,
        replica_bytes: int,
        make_executor: MakeExecutor,
        make_compute: MakeComputeOn,
        prepare: Prepare,
        persist: Path | None = None,
    ) -> None:
        self._worker, self._controller_address = worker, controller
        self._persist = persist
        self._replica_bytes = replica_bytes
        self._make_executor, self._make_compute = make_executor, make_compute
        self._stages: dict[str, Holding] = {}
        self._warmth = Warmth(prepare)
        self._holders: list[Holder] = []

    async def on_start(self) -> None:
        replicas = ReplicaActor(self._controller_address, limit_bytes=self._replica_bytes)
        self.node.watch(self.node.spawn(replicas, name=REPLICAS), self._ended)
        self._holders.append(replicas)
        if self._persist is not None:
            archive = ArchiveActor(self._controller_address, self._persist)
            self.node.watch(self.node.spawn(archive, name=ARCHIVE), self._ended)
            self._holders.append(archive)

    async def on_stop(self, reason: str) -> None:
        self._warmth.close()
        for name in (*self._stages, REPLICAS, ARCHIVE):
            await self.node.stop(name, reason)

    def on_abort(self) -> None:
        self._warmth.close()

    async def receive(self, message: Message, context: Context) -> Message | None:
        match message:
            case LoadStage():
                self._load(message)
            case WarmUp(orders=orders):
                self._warmth.begin(orders)
            case CloseStage(pipeline=pipeline, stage=stage, reason=reason):
                await self._close(_name(pipeline, stage), reason)
            case Survey(below=below):
                return await self._survey(below)
            case StopWorker(reason=reason):
                self.stop(reason)
            case _:
                raise ProtocolError(f"a worker does not take {type(message).__name__}")
        return None

    def _load(self, order: LoadStage) -> None:
        name = _name(order.pipeline, order.stage)
        if name in self._stages:
            raise ProtocolError(f"{self._worker} has {name} already")
        holding = Holding(order, self._make_executor, self._make_compute)
        stage = StageActor(
            self._worker,
            order,
            make_executor=holding.make_executor,
            make_compute=holding.make_compute,
            wait_weights=self._warmth.wait,
            settle=self._settle,
        )
        self._stages[name] = holding
        self.node.watch(self.node.spawn(stage, name=name), self._ended)

    async def _close(self, name: str, reason: str) -> None:
        holding = self._stages.get(name)
        if holding is None:
            return
        await self.node.stop(name, reason)
        self._stages.pop(name, None)
        holding.release()

    def _settle(self) -> None:
        """A stage is loaded: in a process of its own, what there is stays, and the collector passes
        over it from now on."""
        if household.get() is None:
            gc.collect()
            gc.freeze()

    async def _survey(self, below: int) -> Surveyed:
        for holder in self._holders:
            holder.dropped.clear()  # another life of the controller counts pipelines anew
        found = [
            await holding.survey(self.node, self._worker, f"{self.node.address}/{name}", below)
            for name, holding in list(self._stages.items())
        ]
        stages = tuple(each for each in found if each is not None)
        return Surveyed(stages=stages, is_whole=len(stages) == len(found))

    def _ended(self, ref: ActorRef, reason: str) -> None:
        self._stages.pop(ref.name, None)
        if reason.startswith(FAILED):
            self.fail(StageFailed(self._worker, f"{ref.name} {reason}"))


def _name(pipeline: int, stage: int) -> str:
    return f"p{pipeline}-s{stage}"
