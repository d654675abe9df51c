"""What a cluster lets people see of its work: events, metrics, spans of the trace."""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.actors.stream import RequestStream
from dvrt.clock import Clock
from dvrt.control.events import Emit
from dvrt.control.steps import Step, StepDone
from dvrt.errors import DvrtError, Overloaded
from dvrt.observe.events import EventLog, Record
from dvrt.observe.metrics import Metrics
from dvrt.observe.trace import Tracer
from dvrt.results import WorkerStatus


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that has left and not come back: since when, and what it computes."""

    began: float
    kind: str


class Chronicle:
    """Writes down what the controller tells it; decides nothing."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None, clock: Clock) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._events = EventLog()
        self._flights: dict[int, _Flight] = {}
        self.n_finished = 0

    @property
    def oldest_flight_s(self) -> float:
        """For how long the oldest step in flight has been away; 0 without one."""
        oldest = next(iter(self._flights.values()), None)
        return 0.0 if oldest is None else self._clock.time() - oldest.began

    def records(self) -> tuple[Record, ...]:
        return self._events.records()

    def cluster(self, state: str, reason: str = "") -> None:
        self._events.add(self._clock.time(), "cluster", state, reason)

    def worker(self, status: WorkerStatus, reason: str) -> None:
        self._events.add(self._clock.time(), status.name, status.state, reason)

    def refused(self, error: DvrtError) -> None:
        code = "queue_full" if isinstance(error, Overloaded) else getattr(error, "code", None)
        self._metrics.request_rejected(code or "invalid")

    def submitted(self, request_id: str) -> None:
        self._metrics.request_submitted()
        self._events.add(self._clock.time(), request_id, "submitted")

    def admitted(self, request_id: str) -> None:
        self._events.add(self._clock.time(), request_id, "admitted")

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
        )
        self._trace_request(stream)

    def launched(self, step: Step) -> None:
        self._flights[step.id] = _Flight(self._clock.time(), _kind(step))

    def landed(self, done: StepDone) -> None:
        """A step is back; its stages' spans go into the metrics and the trace."""
        flight = self._flights.pop(done.id, None)
        kind = flight.kind if flight is not None else "token"
        for stage, (began, busy_s) in enumerate(done.spans):
            self._metrics.step_finished(stage, busy_s, kind)
            if self._tracer is not None:
                self._tracer.complete(
                    f"{kind} {done.microbatch}",
                    process="stages",
                    lane=f"stage {stage}",
                    start_s=began,
                    duration_s=busy_s,
                    arguments={"step": done.id},
                )

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


def _kind(step: Step) -> str:
    if step.chunks:
        return "mixed" if step.decodes else "prompt"
    return "token"
