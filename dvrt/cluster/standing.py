"""How a cluster is, in one value for people: composed of what its parts say of themselves."""

from __future__ import annotations

from dataclasses import replace

from dvrt.cluster.chronicle import Chronicle
from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.overseer import Overseer
from dvrt.cluster.topology import Seat
from dvrt.results import Status, WorkerStatus


def missed(overseer: Overseer) -> list[Seat]:
    """The stages that are being replaced."""
    return [seat for seat in overseer.topology.seats if seat.is_missed]


def describe_cluster(
    model: str,
    state: str,
    failure: Exception | None,
    overseer: Overseer,
    dispatcher: Dispatcher,
    chronicle: Chronicle,
    *,
    uptime_s: float,
) -> Status:
    numbers, topology = dispatcher.statistics(), overseer.topology
    names = [f"stage {seat.key[1]} of pipeline {seat.key[0]}" for seat in missed(overseer)]
    reason = f"being replaced: {', '.join(names)}" if names else ""
    return Status(
        model=model,
        state=state,
        reason=reason if failure is None else str(failure),
        workers=tuple(
            [_with_lag(each, chronicle) for each in overseer.roster.statuses(topology.owners)]
        ),
        pipelines=topology.statuses(),
        n_lost=overseer.n_lost,
        n_queued=numbers.n_queued,
        n_running=numbers.n_running,
        n_rows=numbers.n_rows,
        n_finished=chronicle.n_finished,
        uptime_s=uptime_s,
    )


def _with_lag(worker: WorkerStatus, chronicle: Chronicle) -> WorkerStatus:
    if worker.pipeline is None or worker.stage is None:
        return worker
    return replace(worker, replica_lag=chronicle.replica_lag(worker.pipeline, worker.stage))
