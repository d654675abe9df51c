"""What workers tell of their work: counted and shown, nothing follows from it."""

from __future__ import annotations

from dvrt.actors.chronicle import Chronicle
from dvrt.actors.messages import ArchiveFailed, Replicated, StageLoaded, Swapped
from dvrt.actors.overseer import Overseer
from dvrt.actors.swapping import judge_figures
from dvrt.control.steps import StepDone

Report = StepDone | StageLoaded | Swapped | ArchiveFailed | Replicated


class Reports:
    """Passes figures on to the workers' statuses and to the chronicle."""

    def __init__(self, overseer: Overseer, chronicle: Chronicle) -> None:
        self._overseer, self._chronicle = overseer, chronicle

    def take(self, report: Report) -> None:
        match report:
            case StepDone(pipeline=pipeline, spans=spans):
                for stage, (_, busy_s) in enumerate(spans):
                    self._overseer.computed(pipeline, stage, busy_s)
            case StageLoaded():
                self._loaded(report)
            case Swapped(pipeline=pipeline, stage=stage, figures=figures):
                self._overseer.swapped(pipeline, stage, figures)
                self._chronicle.swapped(report)
            case ArchiveFailed(worker=worker, reason=reason):
                self._chronicle.cluster("persistence off", f"worker {worker}: {reason}")
                self._overseer.archive_failed(worker)
            case Replicated(pipeline=pipeline, stage=stage):
                seat = self._overseer.topology.seat(pipeline, stage)
                if seat is not None and seat.is_live:
                    self._overseer.lags(seat, self._chronicle.replicated(report))

    def _loaded(self, loaded: StageLoaded) -> None:
        """A stage that swaps says whether that pays."""
        if loaded.swap is None:
            return
        self._overseer.swapped(loaded.pipeline, loaded.stage, loaded.swap)
        judged = judge_figures(loaded.swap)
        if judged is not None and not judged.pays:
            self._chronicle.warned(loaded.pipeline, loaded.stage, str(judged))
