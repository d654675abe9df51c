"""What the overseer of a cluster goes by, and whom it tells what it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dvrt.cluster.roster import StatusCallback
from dvrt.cluster.topology import Seat
from dvrt.config import LaunchOptions
from dvrt.errors import StageFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchfulness:
    """When a worker is given up, and when the cluster is.

    A worker that loads may be silent for ``lease_s``, others for ``silence_s``. Loading, and the
    wait for a worker that joins by hand, take ``start_limit_s`` at most. More than ``max_deaths``
    losses of one place within a minute are too many. ``spares`` workers are kept waiting, and
    ``replicas`` other workers keep a copy of each log.
    """

    heartbeat_s: float
    silence_s: float
    lease_s: float
    start_limit_s: float
    max_deaths: int
    spares: int
    replicas: int

    @classmethod
    def of(cls, options: LaunchOptions) -> Watchfulness:
        return cls(
            heartbeat_s=options.heartbeat_s,
            silence_s=options.silence_s,
            lease_s=options.lease_s,
            start_limit_s=options.start_limit_s,
            max_deaths=options.max_deaths,
            spares=options.spares,
            replicas=options.n_replicas,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """``lost(seats, worker, reason, silence_s)`` comes before any replacing, ``replaced(seat)``
    when a lost stage is loaded again, ``returned(seat)`` when it can be used; ``settled()``
    whenever all stages are ready and know their neighbours; ``degraded(pipeline, error)`` when a
    pipeline, or without one the spares, are given up and the rest goes on; ``failed(error)`` once,
    on giving up.
    """

    status: StatusCallback
    lost: Callable[[list[Seat], str, str, float], None]
    replaced: Callable[[Seat], None]
    returned: Callable[[Seat], None]
    settled: Callable[[], None]
    degraded: Callable[[int | None, StageFailed], None]
    failed: Callable[[StageFailed], None]
