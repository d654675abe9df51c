"""What a cluster lets people see of its work: events, metrics, spans of the trace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from dvrt.clock import Clock
from dvrt.cluster.mending import Mendings
from dvrt.cluster.replication import ReplicaLags, ReplicaRefusals
from dvrt.cluster.stream import RequestStream
from dvrt.cluster.topology import Seat
from dvrt.control.events import Emit, Entered, Place, Rewind
from dvrt.control.scheduler import SchedulerStatistics
from dvrt.control.steps import Step, StepDone
from dvrt.errors import DvrtError
from dvrt.observe.events import EventLog, Record
from dvrt.observe.metrics import Metrics
from dvrt.observe.trace import Tracer
from dvrt.protocol.messages import Arrived, Copies, Replicated
from dvrt.results import WorkerStatus

_log = logging.getLogger("dvrt.cluster")


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that has left and not come back: since when, and what it computes."""

    began: float
    pipeline: int
    rows: int
    chunks: int

    @property
    def kind(self) -> str:
        if self.chunks:
            return "mixed" if self.rows else "prompt"
        return "token"


class Chronicle:
    """Writes down what the controller tells it; decides nothing."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None, clock: Clock) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._events = EventLog()
        self._lags = ReplicaLags()
        self._refusals = ReplicaRefusals()
        self.mendings = Mendings(self._events, metrics, tracer, clock)
        self._flights: dict[int, _Flight] = {}
        self.n_finished = 0

    @property
    def oldest_flight_s(self) -> float:
        """For how long the oldest step in flight has been away; 0 without one."""
        oldest = next(iter(self._flights.values()), None)
        return 0.0 if oldest is None else self._clock.time() - oldest.began

    def read(self, statistics: Callable[[], SchedulerStatistics]) -> None:
        """Have these numbers shown with the metrics, as they are at that moment."""
        self._metrics.watch(
            requests=lambda: statistics().n_requests,
            queue_depth=lambda: statistics().n_queued,
            rows=lambda: statistics().n_rows,
            rows_in_use=lambda: statistics().n_running,
        )
        readings: tuple[tuple[str, str, Callable[[], float]], ...] = (
            (
                "dvrt_recomputed_tokens",
                "Positions computed again after losses, since the start.",
                lambda: statistics().recomputed_tokens,
            ),
            (
                "dvrt_restored_tokens",
                "Positions that came back from copies, for each stage, since the start.",
                lambda: statistics().restored_tokens,
            ),
            (
                "dvrt_replicas_refused",
                "Logs that holders of copies had no room for when they were last sent any; "
                "0 without requests.",
                lambda: self._refusals.n_now if statistics().n_requests else 0,
            ),
        )
        for name, help_text, reading in readings:
            self._metrics.add_gauge(name, help_text, reading)

    def records(self) -> tuple[Record, ...]:
        return self._events.records()

    def cluster(self, state: str, reason: str = "") -> None:
        self._events.add(self._clock.time(), "cluster", state, reason)

    def given_up(self, subject: str, state: str, reason: str, requests: list[str]) -> None:
        """Something is not mended any more, and these requests end with it."""
        ended = f"; with it end {len(requests)} requests: {', '.join(requests)}" if requests else ""
        self._events.add(self._clock.time(), subject, state, f"{reason}{ended}")
        for request in requests:
            self._events.add(self._clock.time(), request, "finished", f"error: {reason}")
        _log.error("%s is %s: %s%s", subject, state, reason.partition("\n")[0], ended)

    def worker(self, status: WorkerStatus, reason: str) -> None:
        self._events.add(self._clock.time(), status.name, status.state, reason)

    def lost(self, worker: str, reason: str, silence_s: float) -> None:
        """A worker is lost. The log says it once; the worker's own record came before."""
        _log.warning("worker %s is lost: %s", worker, reason.partition("\n")[0])
        self._metrics.worker_lost()
        self._metrics.recovered("detect", silence_s)

    def copies_lost(self, holder: str) -> None:
        """A holder of copies is gone."""
        self._lags.lost(holder)
        self._refusals.lost(holder)

    def stage_lost(self, seat: Seat, worker: str) -> None:
        self.mendings.stage_lost(seat, worker)

    def retired(self, pipeline: int) -> None:
        self._lags.forget(pipeline)
        self._refusals.forget(pipeline)
        self.mendings.closed(pipeline)
        self._events.add(self._clock.time(), f"pipeline {pipeline}", "closed", "it is empty")

    def replicated(self, message: Replicated, worker: str) -> None:
        """The holder on this worker has more of a stage's logs, or has no room for them."""
        lag = self._lags.acknowledged(message.pipeline, message.stage, message.holder, message.step)
        self._metrics.replica_lag(lag)
        most = self._refusals.told(message)
        if message.refused > most:
            text = (
                f"worker {worker} has no room for copies of {message.refused} logs; "
                "a loss computes again what these lack (replica_memory)"
            )
            self._warn(message.pipeline, message.stage, text, is_logged=not most)

    def replica_lag(self, pipeline: int, stage: int) -> int | None:
        """Tokens of one sequence that the copies of a stage's logs lack now; None without any."""
        return self._lags.lag(pipeline, stage)

    def warned(self, pipeline: int, stage: int, reason: str) -> None:
        """A stage works as it was told, and it would be better otherwise."""
        self._warn(pipeline, stage, reason, is_logged=True)

    def _warn(self, pipeline: int, stage: int, reason: str, *, is_logged: bool) -> None:
        subject = f"pipeline {pipeline} stage {stage}"
        self._events.add(self._clock.time(), subject, "warned", reason)
        if is_logged:
            _log.warning("%s: %s", subject, reason)

    def copied(self, message: Copies) -> None:
        """Copies of a stage, as lanes beside its compute."""
        if self._tracer is None:
            return
        stage = f"pipeline {message.pipeline} stage {message.stage}"
        for lane, name, began, seconds, nbytes in message.copies:
            self._tracer.complete(
                name,
                process="stages",
                lane=f"{stage} {lane}",
                start_s=began,
                duration_s=seconds,
                arguments={"bytes": nbytes},
            )

    def log_refused(self, message: Arrived) -> None:
        """What came of a log was not what was sent."""
        subject = f"pipeline {message.pipeline} stage {message.stage}"
        text = f"the log of sequence {message.seq}: {message.reason}"
        self._events.add(self._clock.time(), subject, "refused", text)

    def refused(self, error: DvrtError) -> None:
        self._metrics.request_rejected(getattr(error, "code", None) or "invalid")

    def submitted(self, request_id: str) -> None:
        self._metrics.request_submitted()
        self._events.add(self._clock.time(), request_id, "submitted")

    def entered(self, entered: Entered) -> None:
        state = "admitted" if entered.place is Place.PROMPT else f"in {entered.place.value}"
        self._events.add(self._clock.time(), entered.request_id, state)

    def paced(self, seconds: float) -> None:
        """A sample's token came so long after the one before."""
        self._metrics.token_interval(seconds)

    def finished(self, stream: RequestStream, last: Emit) -> None:
        """A request has ended; ``last`` is the emit that ended its last sample."""
        self.n_finished += 1
        reason = last.finish.value if last.finish is not None else "error"
        why = f"{reason}: {last.error}" if last.error else reason
        self._events.add(self._clock.time(), last.request_id, "finished", why)
        timings = stream.timings()
        self._metrics.request_finished(
            reason,
            n_prompt=len(stream.request.prompt_ids),
            n_generated=stream.n_generated,
            queued_s=timings.queued_s,
            first_token_s=timings.first_token_s if stream.n_generated else None,
            total_s=timings.total_s,
            paces=stream.paces,
        )
        for place, seconds in timings.places.items():
            self._metrics.waited(place, seconds)
        self._trace_request(stream)

    def launched(self, step: Step) -> None:
        rows, chunks = len(step.decodes), len(step.chunks)
        self._flights[step.id] = _Flight(self._clock.time(), step.pipeline, rows, chunks)

    def rewound(self, rewind: Rewind) -> None:
        """Steps that are void do not come back."""
        for number, flight in list(self._flights.items()):
            if flight.pipeline == rewind.pipeline and number < rewind.below:
                del self._flights[number]

    def landed(self, done: StepDone) -> bool:
        """A step is back; its stages' spans go into the metrics and the trace. False for a void
        one."""
        flight = self._flights.pop(done.id, None)
        kind = flight.kind if flight is not None else "token"
        arguments = {"step": done.id}
        if flight is not None:
            arguments |= {"rows": flight.rows, "chunks": flight.chunks}
        self._lags.finished(done.pipeline, done.id, done.microbatch)
        self.mendings.landed(done)
        for stage, (began, busy_s) in enumerate(done.spans):
            self._metrics.step_finished(stage, busy_s, kind)
            if self._tracer is not None:
                self._tracer.complete(
                    f"{kind} {done.microbatch}",
                    process="stages",
                    lane=f"pipeline {done.pipeline} stage {stage}",
                    start_s=began,
                    duration_s=busy_s,
                    arguments=arguments,
                )
        return flight is not None

    def _trace_request(self, stream: RequestStream) -> None:
        if self._tracer is None:
            return
        timings = stream.timings()
        self._tracer.complete(
            stream.request.id,
            process="requests",
            lane=stream.request.id,
            start_s=stream.submitted,
            duration_s=timings.total_s,
            arguments={
                "queued_s": timings.queued_s,
                "first_token_s": timings.first_token_s,
                "tokens": stream.n_generated,
            },
        )
        for place, began, seconds in stream.spans():
            self._tracer.complete(
                place.value,
                process="places",
                lane=stream.request.id,
                start_s=began,
                duration_s=seconds,
            )
