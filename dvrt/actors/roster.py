"""The workers of a cluster: who joined, which stage each holds, in what state, with what lease."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from dvrt.actors.heartbeat import Heartbeat
from dvrt.actors.messages import Connect, Joined, LoadStage, StageLoaded, StopWorker
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.errors import ActorError, TransportError
from dvrt.results import WorkerStatus

_log = logging.getLogger("dvrt.actors")

StatusCallback = Callable[[WorkerStatus, str], None]
LossCallback = Callable[[str, str], None]


@dataclass(slots=True)
class _Worker:
    """A worker that has joined, as one mutable record."""

    ref: ActorRef
    status: WorkerStatus
    heartbeat: Heartbeat


class Roster:
    """Gives each joined worker a stage and follows it from loading to its end.

    Workers called ``names`` get the first stages in this order, others the rest as they come.
    ``on_status(status, reason)`` hears of every change, ``on_loss(worker, reason)`` of workers that
    are out of reach. A worker that is silent for ``lease_s`` is shut out.
    """

    def __init__(
        self,
        stages: Sequence[LoadStage],
        *,
        names: Sequence[str],
        heartbeat_s: float,
        lease_s: float,
        on_status: StatusCallback,
        on_loss: LossCallback,
    ) -> None:
        self._orders = stages
        self._names = list(names)
        self._heartbeat_s, self._lease_s = heartbeat_s, lease_s
        self._on_status, self._on_loss = on_status, on_loss
        self._workers: dict[str, _Worker] = {}
        self._stages: list[_Worker | None] = [None] * len(stages)

    @property
    def first(self) -> ActorRef:
        """The first stage; only once all have joined."""
        worker = self._stages[0]
        assert worker is not None, "no worker holds the first stage"
        return worker.ref

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """All workers that have joined, in the order of their stages."""
        return tuple(worker.status for worker in self._stages if worker is not None)

    def all_are(self, state: str) -> bool:
        return all(w is not None and w.status.state == state for w in self._stages)

    async def join(self, joined: Joined, node: Node, controller: ActorRef) -> None:
        """Give a worker its stage and have it load; one too many is told to end."""
        stage, ref = self._stage_for(joined.worker), node.ref(joined.stage_actor)
        if stage is None:
            _log.warning("worker %s is one too many", joined.worker)
            await ref.tell(StopWorker(reason="the pipeline has all its workers"))
            return
        order = self._orders[stage]
        status = WorkerStatus(
            name=joined.worker,
            pid=joined.pid,
            role="stage",
            stage=stage,
            layers=order.spec.layers,
            state="loading",
            device=order.spec.device,
        )
        worker = _Worker(ref, status, self._renew_lease(node, ref.node_address))
        self._stages[stage] = self._workers[joined.worker] = worker
        node.watch(ref, lambda _, reason: self._on_loss(joined.worker, reason))
        self._on_status(status, "")
        await ref.tell(replace(order, controller=str(controller)))

    async def loaded(self, loaded: StageLoaded, controller: ActorRef) -> None:
        """Note what a stage holds; when all do, tell each who comes after it."""
        self._change(
            self._workers[loaded.worker],
            state="loaded",
            device=loaded.device,
            weights_bytes=loaded.weights_bytes,
            kv_bytes=loaded.kv_bytes,
        )
        if self.all_are("loaded"):
            stages = [worker.ref for worker in self._stages if worker is not None]
            for ref, successor in zip(stages, [*stages[1:], controller], strict=True):
                await ref.tell(Connect(next_actor=str(successor)))

    def connected(self, name: str) -> None:
        self._change(self._workers[name], state="ready")

    def ended(self, name: str, state: str, reason: str) -> None:
        """A worker is ``lost`` or has ``ended``; the first word counts."""
        worker = self._workers.get(name)
        if worker is not None and worker.status.state not in ("lost", "ended"):
            self._change(worker, reason, state=state)

    def computed(self, stage: int, busy_s: float) -> None:
        """Count a step of a stage."""
        worker = self._stages[stage]
        if worker is not None:
            status = worker.status
            worker.status = replace(status, steps=status.steps + 1, busy_s=status.busy_s + busy_s)

    def close(self, reason: str) -> None:
        """Tell all workers to end, and let their leases run out."""
        for worker in self._workers.values():
            worker.heartbeat.close()
            with suppress(ActorError, TransportError):
                worker.ref.tell_nowait(StopWorker(reason=reason))

    def _stage_for(self, worker: str) -> int | None:
        if worker in self._workers:
            return None
        if worker in self._names:
            return self._names.index(worker)
        free = range(len(self._names), len(self._stages))
        return next((stage for stage in free if self._stages[stage] is None), None)

    def _renew_lease(self, node: Node, address: str) -> Heartbeat:
        return Heartbeat(
            node,
            address,
            interval_s=self._heartbeat_s,
            limit_s=self._lease_s,
            on_silence=lambda seconds: node.fence(address, f"silent for {seconds:.1f} s"),
        )

    def _change(self, worker: _Worker, reason: str = "", **changes: str | int) -> None:
        worker.status = replace(worker.status, **changes)  # type: ignore[arg-type]
        self._on_status(worker.status, reason)
