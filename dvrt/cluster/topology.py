"""Which stages there are, which worker has each, and what each must know of the others.

Pure: says what should be told to whom; telling is others' part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dvrt.cluster.plan import PipelineLayout
from dvrt.control.pipeline import PipelinePlan, Purpose
from dvrt.protocol.messages import Connect, LoadStage, PipelineAddress, StageAddress, StageLoaded
from dvrt.results import PipelineStatus

ROLES = {Purpose.BOTH: "stage", Purpose.PROMPT: "prompt", Purpose.TOKEN: "token"}
IDLE = "idle"
"""The state of a worker that waits for a stage."""
MAX_HOLDERS = 8
"""So many replica actors are remembered for one stage, the latest first."""


class SeatState(StrEnum):
    """``EMPTY``: no worker yet, or a new one is on its way. ``LOADED``: not connected yet."""

    EMPTY = "empty"
    LOADING = "loading"
    LOADED = "loaded"
    READY = "ready"


@dataclass(slots=True, eq=False)
class Seat:
    """One stage of one pipeline, as a mutable record.

    ``owner`` is the worker that has it or will have it. ``actor`` is the address of the latest
    stage actor, which may be gone while the seat is not LOADED or READY. ``told`` is the latest
    Connect, ``unanswered`` how many of them wait for their Connected. ``holders`` are the replica
    actors that may have copies of its logs, the latest first. ``is_missed``: the scheduler was
    told of its loss, and not yet of its return.
    """

    order: LoadStage
    purpose: Purpose
    owner: str
    state: SeatState = SeatState.EMPTY
    actor: str = ""
    told: Connect | None = None
    unanswered: int = 0
    holders: tuple[str, ...] = ()
    is_missed: bool = False
    weights_bytes: int = 0
    weights_total: int = 0
    kv_bytes: int = 0
    device: str = ""

    @property
    def key(self) -> tuple[int, int]:
        return self.order.pipeline, self.order.stage

    @property
    def is_live(self) -> bool:
        """There is an actor that can be told something."""
        return self.state in (SeatState.LOADED, SeatState.READY)

    @property
    def is_loading(self) -> bool:
        return self.state is SeatState.LOADING

    def vacate(self) -> None:
        """Its worker is gone."""
        self.state, self.told, self.unanswered = SeatState.EMPTY, None, 0
        self.weights_bytes = self.weights_total = self.kv_bytes = 0

    def fill(self, loaded: StageLoaded) -> None:
        """Its worker has loaded it."""
        self.state, self.actor, self.device = SeatState.LOADED, loaded.actor, loaded.device
        self.weights_bytes = self.weights_total = loaded.weights_bytes
        self.kv_bytes = loaded.kv_bytes

    def connect(self, wish: Connect) -> None:
        """This is what it is told now."""
        self.told = wish
        self.unanswered += 1
        former = tuple(each for each in self.holders if each not in wish.replicas)
        self.holders = (*wish.replicas, *former)[:MAX_HOLDERS]

    def __repr__(self) -> str:
        return f"<Seat {self.key} {self.owner} {self.state} unanswered {self.unanswered}>"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The seats of one pipeline in their order."""

    plan: PipelinePlan
    seats: tuple[Seat, ...]

    @property
    def is_addressed(self) -> bool:
        """All its stages have or had an actor."""
        return all(seat.actor for seat in self.seats)

    @property
    def is_ready(self) -> bool:
        return all(seat.state is SeatState.READY for seat in self.seats)

    @property
    def address(self) -> PipelineAddress:
        stages = tuple(
            StageAddress(actor=seat.actor, first=seat.order.spec.first, stop=seat.order.spec.stop)
            for seat in self.seats
        )
        return PipelineAddress(pipeline=self.plan.id, stages=stages)


class Topology:
    """All current pipelines. Each log is copied to ``n_replicas`` other workers at most.

    Those that are ``given_up`` wait for nobody.
    """

    def __init__(self, *, controller: str, n_replicas: int) -> None:
        self._controller = controller
        self._n_replicas = n_replicas
        self._rows: dict[int, Row] = {}
        self.given_up: set[int] = set()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Prompt pipelines first, the older first."""
        ordered = sorted(self._rows.values(), key=_rank)
        return tuple(ordered)

    @property
    def seats(self) -> Iterator[Seat]:
        """All stages in the order of the ring."""
        return (seat for row in self.rows for seat in row.seats)

    @property
    def owners(self) -> tuple[str, ...]:
        """The workers in the order of the ring, each once."""
        return tuple(dict.fromkeys(seat.owner for seat in self.seats))

    def add(self, layout: PipelineLayout, owners: tuple[str, ...]) -> None:
        """A pipeline whose stages belong to these workers."""
        purpose = layout.plan.purpose
        seats = [
            Seat(order, purpose, owner) for order, owner in zip(layout.loads, owners, strict=True)
        ]
        self._rows[layout.plan.id] = Row(layout.plan, tuple(seats))

    def drop(self, pipeline: int) -> Row:
        return self._rows.pop(pipeline)

    def statuses(self) -> tuple[PipelineStatus, ...]:
        return tuple(
            PipelineStatus(
                id=row.plan.id,
                purpose=row.plan.purpose.value,
                n_microbatches=row.plan.shape.n_microbatches,
                batch_size=row.plan.shape.batch_size,
                stages=tuple(seat.state.value for seat in row.seats),
            )
            for row in self.rows
        )

    def has(self, pipeline: int) -> bool:
        return pipeline in self._rows

    def row(self, pipeline: int) -> Row:
        return self._rows[pipeline]

    def seat(self, pipeline: int, stage: int) -> Seat | None:
        """None for a stage of a pipeline that is gone."""
        row = self._rows.get(pipeline)
        return row.seats[stage] if row is not None and 0 <= stage < len(row.seats) else None

    def seats_of(self, worker: str) -> list[Seat]:
        return [seat for seat in self.seats if seat.owner == worker]

    @property
    def is_settled(self) -> bool:
        """Every Connect that was sent has been confirmed."""
        return not any(seat.unanswered for seat in self.seats)

    @property
    def is_ready(self) -> bool:
        needed = [row for key, row in self._rows.items() if key not in self.given_up]
        return bool(needed) and self.is_settled and all(row.is_ready for row in needed)

    def can_spare(self, pipelines: set[int]) -> bool:
        """Whether something can still be served without these."""
        rest = [row.plan.purpose for key, row in self._rows.items() if key not in pipelines]
        return len(self._rows) == 2 and rest == [Purpose.TOKEN]

    def wish(
        self, seat: Seat, replicas: Mapping[str, str], archives: Mapping[str, str]
    ) -> Connect | None:
        """What a stage should be told now; None while its pipeline has no addresses.

        ``replicas`` and ``archives`` are those actors of living workers by the worker's name; logs
        of prompts alone are not worth an archive.
        """
        row = self._rows[seat.order.pipeline]
        if not row.is_addressed:
            return None
        after = seat.order.stage + 1
        is_last = after == len(row.seats)
        archive = archives.get(seat.owner)
        kept = (archive,) if archive and seat.purpose is not Purpose.PROMPT else ()
        return Connect(
            next_actor=self._controller if is_last else row.seats[after].actor,
            targets=tuple(other.address for other in self._targets(row)),
            replicas=(*self._replicas(seat.owner, replicas), *kept),
        )

    def _targets(self, row: Row) -> Iterator[Row]:
        """Where logs of this pipeline may go: from prompts to tokens, and to what replaces it.

        Pipelines other than one for both, or one for each, are there while a split changes.
        """
        purposes = sorted(other.plan.purpose for other in self._rows.values())
        is_changing = purposes not in ([Purpose.BOTH], [Purpose.PROMPT, Purpose.TOKEN])
        for other in self.rows:
            is_pair = (row.plan.purpose, other.plan.purpose) == (Purpose.PROMPT, Purpose.TOKEN)
            if other is not row and other.is_addressed and (is_pair or is_changing):
                yield other

    def _replicas(self, owner: str, replicas: Mapping[str, str]) -> tuple[str, ...]:
        """The holders of a worker's logs: those who come after it in the ring.

        A worker that is to be replaced keeps its place, so that nobody else's copies move.
        """
        ring = self.owners
        at = ring.index(owner)
        following = (*ring[at + 1 :], *ring[:at])[: self._n_replicas]
        return tuple(replicas[name] for name in following if replicas.get(name))


def _rank(row: Row) -> tuple[bool, int]:
    return row.plan.purpose is not Purpose.PROMPT, row.plan.id


def described(seats: list[Seat]) -> dict[str, Any]:
    """What a worker's status says of its seats; of several, the newest one's place."""
    if not seats:
        place = {"role": "spare", "stage": None, "layers": None, "pipeline": None}
        return {**place, "state": IDLE, "weights_bytes": 0, "weights_total": 0, "kv_bytes": 0}
    latest = max(seats, key=lambda seat: seat.key)
    return {
        "role": ROLES[latest.purpose],
        "stage": latest.order.stage,
        "layers": latest.order.spec.layers,
        "pipeline": latest.order.pipeline,
        "state": str(next(s for s in SeatState if any(seat.state is s for seat in seats))),
        "device": latest.device or latest.order.spec.device,
        "weights_bytes": sum(seat.weights_bytes for seat in seats),
        "weights_total": sum(seat.weights_total for seat in seats),
        "kv_bytes": sum(seat.kv_bytes for seat in seats),
    }
