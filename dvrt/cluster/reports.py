"""What workers tell of their work: counted and shown."""

from __future__ import annotations

from collections.abc import Callable

from dvrt.cluster.chronicle import Chronicle
from dvrt.cluster.overseer import Overseer
from dvrt.cluster.roster import Member
from dvrt.cluster.swap_verdict import judge_figures, refusal, swap_status
from dvrt.cluster.topology import Seat, described
from dvrt.control.steps import StepDone
from dvrt.errors import ConfigError
from dvrt.models.swap_figures import SwapFigures
from dvrt.protocol.messages import (
    ArchiveFailed,
    Copies,
    Replicated,
    StageLoaded,
    StageLoading,
    Swapped,
)
from dvrt.results import WorkerStatus

Report = StepDone | StageLoading | StageLoaded | Swapped | Copies | ArchiveFailed | Replicated


class Reports:
    """Passes figures on to the workers' statuses and to the chronicle.

    Of one thing something follows: with ``refuses``, a launch ends that swaps to no purpose.
    """

    def __init__(
        self,
        overseer: Overseer,
        chronicle: Chronicle,
        *,
        refuses: bool,
        on_progress: Callable[[WorkerStatus], None] | None,
    ) -> None:
        self._overseer, self._chronicle = overseer, chronicle
        self._refuses, self._on_progress = refuses, on_progress

    def take(self, report: Report) -> None:
        match report:
            case StepDone(pipeline=pipeline, spans=spans):
                for stage, (_, busy_s) in enumerate(spans):
                    self._computed(pipeline, stage, busy_s)
            case StageLoading():
                self._loading(report)
            case StageLoaded():
                self._loaded(report)
            case Swapped(pipeline=pipeline, stage=stage, figures=figures):
                self._swapped(pipeline, stage, figures)
            case Copies():
                self._chronicle.copied(report)
            case ArchiveFailed(worker=worker, reason=reason):
                self._chronicle.cluster("persistence off", f"worker {worker}: {reason}")
                self._overseer.archive_failed(worker)
            case Replicated(pipeline=pipeline, stage=stage):
                seat = self._overseer.topology.seat(pipeline, stage)
                if seat is not None and seat.is_live:
                    self.stored(seat, report)

    def _loading(self, report: StageLoading) -> None:
        """How far a stage has read: for whoever looks on, and no event."""
        seat = self._overseer.topology.seat(report.pipeline, report.stage)
        member = self._overseer.roster.get(report.worker)
        if seat is None or member is None or seat.owner != report.worker or not seat.is_loading:
            return
        seat.weights_bytes, seat.weights_total = report.read_bytes, report.total_bytes
        self._overseer.roster.count(
            member, **described(self._overseer.topology.seats_of(seat.owner))
        )
        if self._on_progress is not None:
            self._on_progress(member.status)

    def _loaded(self, loaded: StageLoaded) -> None:
        """A stage that swaps says whether that pays. What serves already is not refused."""
        if loaded.swap is None:
            return
        self._swapped(loaded.pipeline, loaded.stage, loaded.swap)
        judged = judge_figures(loaded.swap)
        if judged is None or judged.pays:
            return
        why = refusal(judged) if self._refuses and not self._overseer.is_serving else ""
        if why:
            self._overseer.exited(loaded.worker, ConfigError(why))
        else:
            self._chronicle.warned(loaded.pipeline, loaded.stage, str(judged))

    def _computed(self, pipeline: int, stage: int, busy_s: float) -> None:
        """Count a step of a stage."""
        member = self._member_at(pipeline, stage)
        if member is not None:
            was = member.status
            self._overseer.roster.count(member, steps=was.steps + 1, busy_s=was.busy_s + busy_s)

    def _swapped(self, pipeline: int, stage: int, figures: SwapFigures) -> None:
        """How swapping goes at a stage."""
        member = self._member_at(pipeline, stage)
        if member is not None:
            self._overseer.roster.count(member, swap=swap_status(figures))

    def stored(self, seat: Seat, report: Replicated) -> None:
        """A holder has more of the logs of the stage in this seat."""
        names = {actor: name for name, actor in self._overseer.roster.replica_actors.items()}
        self._chronicle.replicated(report, names.get(report.holder, report.holder))

    def _member_at(self, pipeline: int, stage: int) -> Member | None:
        seat = self._overseer.topology.seat(pipeline, stage)
        return self._overseer.roster.get(seat.owner) if seat is not None else None
