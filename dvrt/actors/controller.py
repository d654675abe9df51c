"""The controller: turns joined workers into a pipeline, and requests into steps.

It feeds events to the scheduler and carries out the commands; it decides nothing by itself. All its
state belongs to one event loop, and every touch of the scheduler is synchronous.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from dvrt.actors.actor import Actor, Context
from dvrt.actors.chronicle import Chronicle
from dvrt.actors.cluster import ClusterPlan
from dvrt.actors.messages import Connected, Forward, Joined, StageLoaded
from dvrt.actors.roster import Roster
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
from dvrt.observe.events import Record
from dvrt.observe.metrics import Metrics
from dvrt.observe.trace import Tracer
from dvrt.requests import FinishReason, Request
from dvrt.results import Status, WorkerStatus
from dvrt.virtual import precise_clock
from dvrt.wire import Message

STALL_LIMIT_S = 60.0
"""A step in flight for longer than this means that the pipeline makes no progress."""

Progress = Callable[[WorkerStatus], None]


class Controller(Actor):
    """All workers and requests of one cluster; see Roster for how workers become stages.

    Requests are served from when all stages are connected until a worker is lost or the controller
    is stopped. Belongs to the event loop that it is made on.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        metrics: Metrics,
        *,
        names: Sequence[str],
        heartbeat_s: float,
        lease_s: float,
        tracer: Tracer | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = precise_clock(self._loop)
        self._began = self._clock.time()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._plan = plan
        self._on_progress = on_progress
        self._chronicle = Chronicle(metrics, tracer, self._clock)
        self._scheduler = Scheduler(plan.shape, plan.limits)
        self._streams: dict[str, RequestStream] = {}
        self._state = "starting"
        self._failure: DvrtError | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._roster = Roster(
            plan.stages,
            names=names,
            heartbeat_s=heartbeat_s,
            lease_s=lease_s,
            on_status=self._worker_changed,
            on_loss=self.worker_lost,
        )
        metrics.watch(
            queue_depth=lambda: self._scheduler.statistics().n_queued,
            running=lambda: self._scheduler.statistics().n_running,
            rows=lambda: self._scheduler.statistics().n_rows,
        )

    async def on_stop(self, reason: str) -> None:
        """Nobody is left waiting: requests get an error, workers are told to end."""
        self._end_serving(Unavailable(f"the cluster was stopped: {reason}"), state="stopped")
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._roster.close(reason)

    # What the cluster's owner calls, all of it on the controller's loop.

    async def wait_ready(self) -> None:
        """Return when all stages are loaded and connected. Raises what prevented it."""
        await asyncio.shield(self._ready)

    def submit(self, request: Request) -> RequestStream:
        """Take a request. Raises RequestRejected, or Unavailable when the cluster cannot serve."""
        if self._state != "serving":
            why = f": {self._failure}" if self._failure is not None else ""
            raise Unavailable(f"the cluster is {self._state}{why}")
        now = self._clock.time()
        commands = self._scheduler.handle(Submit(request=request, now=now))
        for command in commands:
            if isinstance(command, Reject):
                self._chronicle.refused(command.error)
                raise command.error
        stream = self._streams[request.id] = RequestStream(request, submitted=now)
        self._chronicle.submitted(request.id)
        self._quiet.clear()
        self._perform(commands)
        if request.deadline_s is not None:
            self._wake_at(now + request.deadline_s)
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
            now = self._clock.time()
            event = Cancel(request_id=request_id, now=now, reason=reason, sample=sample)
            self._handle(event)

    def status(self) -> Status:
        numbers = self._scheduler.statistics()
        return Status(
            model=self._plan.card.name,
            state=self._state,
            workers=self._roster.statuses(),
            n_queued=numbers.n_queued,
            n_running=numbers.n_running,
            n_rows=numbers.n_rows,
            n_finished=self._chronicle.n_finished,
            uptime_s=self._clock.time() - self._began,
        )

    def events(self) -> tuple[Record, ...]:
        return self._chronicle.records()

    def is_healthy(self) -> bool:
        is_up = self._state in ("serving", "draining")
        return is_up and self._chronicle.oldest_flight_s < STALL_LIMIT_S

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
        is_closing = self._state == "stopped"
        self._roster.ended(worker, "ended" if is_closing else "lost", reason)
        if not is_closing and self._state != "failed":
            self._end_serving(StageFailed(worker, reason), state="failed")

    # Messages.

    async def receive(self, message: Message, context: Context) -> Message | None:
        match message:
            case StepDone():
                self._step_done(message)
            case Joined():
                await self._roster.join(message, self.node, self.me)
            case StageLoaded():
                await self._roster.loaded(message, self.me)
            case Connected(worker=name):
                self._connected(name)
            case _:
                raise ProtocolError(f"the controller does not take {type(message).__name__}")
        return None

    def _connected(self, name: str) -> None:
        self._roster.connected(name)
        if self._roster.all_are("ready") and not self._ready.done():
            self._state = "serving"
            self._chronicle.cluster("serving")
            self._ready.set_result(None)

    def _worker_changed(self, status: WorkerStatus, reason: str) -> None:
        self._chronicle.worker(status, reason)
        if self._on_progress is not None:
            self._on_progress(status)

    # Events and commands.

    def _step_done(self, done: StepDone) -> None:
        """Send the next step first: everything else can be done while it is on its way."""
        self._handle(StepFinished(done=done, now=self._clock.time()))
        self._chronicle.landed(done)
        for stage, (_, busy_s) in enumerate(done.spans):
            self._roster.computed(stage, busy_s)

    def _handle(self, event: Event) -> None:
        self._perform(self._scheduler.handle(event))

    def _perform(self, commands: list[Command]) -> None:
        """Carry commands out; steps leave before anything is told to clients."""
        for command in commands:
            if isinstance(command, RunStep):
                self._launch(command.step)
        for command in commands:
            match command:
                case RunStep():
                    pass
                case Emit():
                    self._emit(command)
                case Admitted(request_id=request_id, now=now):
                    self._chronicle.admitted(request_id)
                    self._streams[request_id].admitted(now)
                case Reject():
                    raise AssertionError("only a submission can be rejected")

    def _launch(self, step: Step) -> None:
        self._chronicle.launched(step)
        with suppress(ActorError, TransportError):  # the watch on the stage tells why it is gone
            self._roster.first.tell_nowait(Forward(step=step))

    def _emit(self, emit: Emit) -> None:
        stream = self._streams.get(emit.request_id)
        if stream is None:
            return
        stream.put(emit, self._clock.time())
        if stream.is_ended:
            del self._streams[emit.request_id]
            self._chronicle.finished(stream, emit)
            if not self._streams:
                self._quiet.set()

    def _end_serving(self, error: DvrtError, *, state: str) -> None:
        """Take nothing new; what runs ends with this error."""
        self._state, self._failure = state, error
        self._chronicle.cluster(state, str(error))
        if not self._ready.done():
            self._ready.set_exception(error)
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self._quiet.set()

    def _wake_at(self, at: float) -> None:
        """Have deadlines looked at no later than then."""
        if self._deadline_timer is not None:
            if self._deadline_timer.when() <= at:
                return
            self._deadline_timer.cancel()
        self._deadline_timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._deadline_timer = None
        self._handle(Tick(now=self._clock.time()))
        at = self._scheduler.next_deadline()
        if at is not None:
            self._wake_at(at)
