"""The controller: turns joined workers into a pipeline, and requests into steps.

It feeds events to the scheduler and carries out the commands; it decides nothing by itself. All its
state belongs to one event loop, and every touch of the scheduler is synchronous.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from dvrt.actors.actor import Actor, Context
from dvrt.actors.cluster import ClusterPlan
from dvrt.actors.messages import Connect, Connected, Forward, Joined, StageLoaded
from dvrt.actors.ref import ActorRef
from dvrt.actors.stream import RequestStream
from dvrt.control.events import (
    Admitted,
    Cancel,
    Command,
    Emit,
    Event,
    Reject,
    RunStep,
    StepFinished,
    Submit,
    Tick,
)
from dvrt.control.scheduler import Scheduler
from dvrt.control.steps import Step, StepDone
from dvrt.errors import (
    ActorError,
    DvrtError,
    ProtocolError,
    StageFailed,
    TransportError,
    Unavailable,
)
from dvrt.observe.events import EventLog, Record
from dvrt.observe.metrics import Metrics
from dvrt.observe.trace import Tracer
from dvrt.requests import FinishReason, Request
from dvrt.results import Status, WorkerStatus
from dvrt.wire import Message

STALL_LIMIT_S = 60.0
"""A step in flight for longer than this means that the pipeline makes no progress."""

Progress = Callable[[WorkerStatus], None]


@dataclass(slots=True)
class _Worker:
    """A worker that has joined, as one mutable record."""

    ref: ActorRef
    status: WorkerStatus


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that has left and not come back: since when, and what it computes."""

    began: float
    kind: str


class Controller(Actor):
    """All workers and requests of one cluster.

    ``plan.stages`` workers must join; each is given the next stage without a worker, loads it, and
    is connected to its successor. Then requests are served until a worker is lost or ``stop``.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        metrics: Metrics,
        *,
        tracer: Tracer | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._plan = plan
        self._metrics = metrics
        self._tracer = tracer
        self._events = EventLog()
        self._on_progress = on_progress
        self._scheduler = Scheduler(plan.shape, plan.limits)
        self._workers: dict[str, _Worker] = {}
        self._stages: list[_Worker | None] = [None] * len(plan.stages)
        self._streams: dict[str, RequestStream] = {}
        self._state = "starting"
        self._failure: DvrtError | None = None
        self._flown: dict[int, _Flight] = {}
        self._n_finished = 0
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._first_stage: ActorRef | None = None

    async def on_start(self) -> None:
        self._metrics.watch(
            queue_depth=lambda: self._scheduler.statistics().n_queued,
            running=lambda: self._scheduler.statistics().n_running,
            rows=lambda: self._scheduler.statistics().n_rows,
        )

    async def on_stop(self, reason: str) -> None:
        self._fail(Unavailable(f"the cluster was stopped: {reason}"), state="stopped")
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()

    # What the cluster's owner calls; all of it on the controller's loop.

    async def wait_ready(self) -> None:
        """Return when all stages are loaded and connected. Raises what prevented it."""
        await asyncio.shield(self._ready)

    def submit(self, request: Request) -> RequestStream:
        """Take a request. Raises RequestRejected, or Unavailable when the cluster cannot serve."""
        if self._state != "serving":
            why = f": {self._failure}" if self._failure is not None else ""
            raise Unavailable(f"the cluster is {self._state}{why}")
        now = self._loop.time()
        stream = RequestStream(request, submitted=now)
        commands = self._scheduler.handle(Submit(request=request, now=now))
        for command in commands:
            if isinstance(command, Reject):
                self._metrics.request_rejected(getattr(command.error, "code", None) or "invalid")
                raise command.error
        self._metrics.request_submitted()
        self._events.add(now, request.id, "submitted")
        self._streams[request.id] = stream
        self._quiet.clear()
        self._perform(commands)
        self._arm_deadline()
        return stream

    def cancel(
        self,
        request_id: str,
        *,
        sample: int | None = None,
        reason: FinishReason = FinishReason.CANCELLED,
    ) -> None:
        """End a request or one of its samples; harmless when it has ended."""
        if request_id in self._streams:
            event = Cancel(
                request_id=request_id, now=self._loop.time(), reason=reason, sample=sample
            )
            self._handle(event)

    def status(self) -> Status:
        numbers = self._scheduler.statistics()
        return Status(
            model=self._plan.card.name,
            state=self._state,
            workers=tuple(worker.status for worker in self._workers.values()),
            n_queued=numbers.n_queued,
            n_running=numbers.n_running,
            n_rows=numbers.n_rows,
            n_finished=self._n_finished,
            uptime_s=self._loop.time() - self._began,
        )

    def events(self) -> tuple[Record, ...]:
        return self._events.records()

    def is_healthy(self) -> bool:
        if self._state not in ("serving", "draining"):
            return False
        oldest = next(iter(self._flown.values()), None)
        return oldest is None or self._loop.time() - oldest.began < STALL_LIMIT_S

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests; wait for the running ones, then end those that are left."""
        if self._state == "serving":
            self._state = "draining"
        try:
            async with asyncio.timeout(limit_s):
                await self._quiet.wait()
        except TimeoutError:
            for request_id in list(self._streams):
                self.cancel(request_id)

    def worker_lost(self, worker: str, reason: str) -> None:
        """A worker has ended. Every request that it served ends with an error that says so."""
        record = self._workers.get(worker)
        if record is not None:
            if record.status.state == "lost":
                return
            self._set_state(record, "lost")
        if self._state not in ("stopped", "failed"):
            self._fail(StageFailed(worker, reason), state="failed")

    # Messages.

    async def receive(self, message: Message, context: Context) -> Message | None:
        match message:
            case StepDone():
                self._step_done(message)
            case Joined():
                await self._joined(message)
            case StageLoaded():
                await self._loaded(message)
            case Connected(worker=name):
                self._connected(name)
            case _:
                raise ProtocolError(f"the controller does not take {type(message).__name__}")
        return None

    async def _joined(self, joined: Joined) -> None:
        if None not in self._stages or joined.worker in self._workers:
            raise ProtocolError(f"worker {joined.worker!r} is one too many")
        stage = self._stages.index(None)
        order = self._plan.stages[stage]
        ref = self.node.ref(joined.stage_actor)
        status = WorkerStatus(
            name=joined.worker,
            pid=joined.pid,
            role="stage",
            stage=stage,
            layers=order.spec.layers,
            state="loading",
            device=order.spec.device,
        )
        worker = _Worker(ref, status)
        self._stages[stage] = self._workers[joined.worker] = worker
        self.node.watch(ref, lambda _, reason: self.worker_lost(joined.worker, reason))
        self._report(worker)
        await ref.tell(replace(order, controller=str(self.me)))

    async def _loaded(self, loaded: StageLoaded) -> None:
        worker = self._workers[loaded.worker]
        worker.status = replace(
            worker.status,
            state="loaded",
            device=loaded.device,
            weights_bytes=loaded.weights_bytes,
            kv_bytes=loaded.kv_bytes,
        )
        self._report(worker)
        stages = [w for w in self._stages if w is not None and w.status.state == "loaded"]
        if len(stages) == len(self._stages):
            successors = [*(str(w.ref) for w in stages[1:]), str(self.me)]
            for each, successor in zip(stages, successors, strict=True):
                await each.ref.tell(Connect(next_actor=successor))

    def _connected(self, name: str) -> None:
        self._set_state(self._workers[name], "ready")
        first = self._stages[0]
        if first is None or any(w is None or w.status.state != "ready" for w in self._stages):
            return
        self._first_stage = first.ref
        self._state = "serving"
        self._events.add(self._loop.time(), "cluster", "serving")
        if not self._ready.done():
            self._ready.set_result(None)

    # Events and commands.

    def _step_done(self, done: StepDone) -> None:
        flight = self._flown.pop(done.id, None)
        kind = flight.kind if flight is not None else "token"
        for stage, (worker, (began, busy_s)) in enumerate(
            zip(self._stages, done.spans, strict=False)
        ):
            if worker is not None:
                status = worker.status
                worker.status = replace(
                    status, steps=status.steps + 1, busy_s=status.busy_s + busy_s
                )
                self._metrics.step_finished(stage, busy_s, kind)
                self._trace_step(done, stage, began, busy_s, kind)
        self._handle(StepFinished(done=done, now=self._loop.time()))

    def _handle(self, event: Event) -> None:
        self._perform(self._scheduler.handle(event))

    def _perform(self, commands: list[Command]) -> None:
        now = self._loop.time()
        for command in commands:
            match command:
                case RunStep(step=step):
                    self._flown[step.id] = _Flight(now, _kind(step))
                    self._launch(step)
                case Emit():
                    self._emit(command, now)
                case Admitted():
                    self._events.add(now, command.request_id, "admitted")
                    self._streams[command.request_id].admitted(now)
                case Reject():
                    raise AssertionError("only a submission can be rejected")

    def _launch(self, step: Step) -> None:
        assert self._first_stage is not None
        with suppress(ActorError, TransportError):  # the watch on the stage tells why it is gone
            self._first_stage.tell_nowait(Forward(step=step))

    def _emit(self, emit: Emit, now: float) -> None:
        stream = self._streams.get(emit.request_id)
        if stream is None:
            return
        stream.put(emit, now)
        if stream.is_ended:
            del self._streams[emit.request_id]
            self._n_finished += 1
            self._count(stream, emit.finish)
            self._trace_request(stream)
            self._events.add(now, emit.request_id, "finished", _why(emit))
            if not self._streams:
                self._quiet.set()

    def _trace_step(
        self, done: StepDone, stage: int, began: float, busy_s: float, kind: str
    ) -> None:
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
        if self._tracer is not None:
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

    def _count(self, stream: RequestStream, finish: FinishReason | None) -> None:
        timings = stream.timings()
        self._metrics.request_finished(
            finish.value if finish is not None else "error",
            n_prompt=len(stream.request.prompt_ids),
            n_generated=stream.n_generated,
            queued_s=timings.queued_s,
            first_token_s=timings.first_token_s if stream.n_generated else None,
            total_s=timings.total_s,
        )

    def _fail(self, error: DvrtError, *, state: str) -> None:
        """Stop serving: nothing new is taken, and what runs ends with this error."""
        self._state, self._failure = state, error
        self._events.add(self._loop.time(), "cluster", state, str(error))
        if not self._ready.done():
            self._ready.set_exception(error)
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self._quiet.set()

    def _arm_deadline(self) -> None:
        """Have the next deadline looked at when it comes."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        at = self._scheduler.next_deadline()
        if at is not None:
            self._deadline_timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._handle(Tick(now=self._loop.time()))
        self._arm_deadline()

    def _set_state(self, worker: _Worker, state: str) -> None:
        worker.status = replace(worker.status, state=state)
        self._report(worker)

    def _report(self, worker: _Worker) -> None:
        status = worker.status
        self._events.add(self._loop.time(), status.name, status.state)
        if self._on_progress is not None:
            self._on_progress(worker.status)


def _why(emit: Emit) -> str:
    reason = emit.finish.value if emit.finish is not None else ""
    return f"{reason}: {emit.error}" if emit.error else reason


def _kind(step: Step) -> str:
    if step.chunks:
        return "mixed" if step.decodes else "prompt"
    return "token"
