"""A stage of this worker as whoever claims the worker wants to know it: its order and its logs."""

from __future__ import annotations

from collections.abc import Callable

from dvrt.actors.node import Node
from dvrt.protocol.claims import HeldStage
from dvrt.protocol.messages import LoadStage, LogRange, Rewind, StageLoaded
from dvrt.stages.compute import Compute
from dvrt.stages.executor import StageExecutor
from dvrt.stages.load_progress import LoadProgress
from dvrt.stages.stage import MakeExecutor

MakeComputeOn = Callable[[str, str], Compute]
"""A compute by this name for this device."""

REWIND_LIMIT_S = 5.0


class Holding:
    """Stands between a stage and what it is made of, and keeps hold of both."""

    def __init__(
        self, order: LoadStage, make_executor: MakeExecutor, make_compute: MakeComputeOn
    ) -> None:
        self.order = order
        self._make_executor, self._make_compute = make_executor, make_compute
        self._executor: StageExecutor | None = None
        self._compute: Compute | None = None

    def make_executor(self, order: LoadStage, progress: LoadProgress) -> StageExecutor:
        self._executor = self._make_executor(order, progress)
        return self._executor

    def make_compute(self, name: str) -> Compute:
        """The first one is the stage's own; one that swaps has others for its copies."""
        compute = self._make_compute(name, self.order.spec.device)
        self._compute = self._compute or compute
        return compute

    def release(self) -> None:
        """The stage has ended: give its memory back now."""
        if self._executor is not None:
            self._executor.model.release()

    async def survey(self, node: Node, worker: str, actor: str, below: int) -> HeldStage | None:
        """What the stage has once nothing of a step below ``below`` can come to it any more; None
        for one that is still loading.

        Steps that it has accepted are skipped or finished before its logs are read.
        """
        executor, compute = self._executor, self._compute
        if executor is None or compute is None:
            return None
        await node.ref(actor).ask(Rewind(below=below), deadline_s=REWIND_LIMIT_S)
        logs = (await compute.submit(lambda: _logs_of(executor))).value
        loaded = StageLoaded(
            worker=worker,
            actor=actor,
            pipeline=self.order.pipeline,
            stage=self.order.stage,
            weights_bytes=executor.model.weights_bytes,
            kv_bytes=executor.model.kv_bytes,
            load_s=0.0,
            device=self.order.spec.device,
        )
        return HeldStage(order=self.order, loaded=loaded, logs=logs)


def _logs_of(executor: StageExecutor) -> tuple[LogRange, ...]:
    return tuple(
        [
            LogRange(slot=slot, seq=log.seq, epoch=log.epoch, start=0, stop=log.length)
            for slot, log in executor.ledger.logs
            if log.length
        ]
    )
