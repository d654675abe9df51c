"""The controller: the actor that workers and stages talk to, and what the engine calls.

The overseer sees to the workers, the dispatcher to the requests; this connects the two and says how
the cluster is. All its state belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from dvrt.actors.actor import Actor, Context
from dvrt.cluster.chronicle import Chronicle
from dvrt.cluster.crew import Crew, Spawn
from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.journal import Journal
from dvrt.cluster.kept_stream import KeptStream
from dvrt.cluster.outlook import Outlook, Watchfulness
from dvrt.cluster.overseer import Overseer
from dvrt.cluster.partings import Partings
from dvrt.cluster.plan import ClusterPlan, Split
from dvrt.cluster.rebalance import Rebalancer
from dvrt.cluster.reports import Reports
from dvrt.cluster.restoration import Restorer
from dvrt.cluster.roster import never_seen
from dvrt.cluster.standing import describe_cluster, missed
from dvrt.cluster.stream import RequestStream
from dvrt.cluster.succession import Succession
from dvrt.cluster.topology import Seat
from dvrt.control.events import Place, Wanted
from dvrt.control.steps import StepDone
from dvrt.errors import DvrtError, ProtocolError, StageFailed, Unavailable
from dvrt.observe.events import Record
from dvrt.observe.metrics import Metrics
from dvrt.observe.trace import Tracer
from dvrt.protocol.messages import (
    ArchiveFailed,
    Arrived,
    Connected,
    Copies,
    Joined,
    LinkCut,
    Replicated,
    StageLoaded,
    StageLoading,
    Swapped,
    Unreached,
)
from dvrt.requests import FinishReason, Request
from dvrt.results import Status, WorkerStatus
from dvrt.virtual import precise_clock
from dvrt.wire import Message

STALL_LIMIT_S = 60.0
"""A step in flight for longer than this means that the pipeline makes no progress."""

Progress = Callable[[WorkerStatus], None]


class Controller(Actor):
    """All workers and requests of one cluster.

    Requests are served from when all stages are connected until too many workers are lost or the
    controller is stopped. Belongs to the event loop that it is made on; ``start`` once its node has
    spawned it.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        metrics: Metrics,
        watchfulness: Watchfulness,
        *,
        tracer: Tracer | None = None,
        on_progress: Progress | None = None,
        journal: Journal | None = None,
        reattach_s: float = 0.0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._clock = precise_clock(loop)
        self._began = self._clock.time()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._plan, self._watchfulness = plan, watchfulness
        self._on_progress = on_progress
        self._chronicle = Chronicle(metrics, tracer, self._clock)
        self.succession = Succession(plan, journal, reattach_s=reattach_s)
        self._dispatcher = Dispatcher(
            plan,
            self._chronicle,
            self._clock,
            restore=lambda seat, command: self._restorer.begin(seat, command),
            retire=self._retire,
            keeper=self.succession.keeper,
            first_number=self.succession.first_number,
        )
        outlook = Outlook(
            status=self._worker_changed,
            lost=self._lost,
            replaced=self._chronicle.mendings.replaced,
            returned=self._returned,
            settled=self._settled,
            degraded=self._degraded,
            failed=self._failed,
        )
        self._overseer = Overseer(watchfulness, outlook, self._clock)
        refuses = not plan.blueprint.options.swap_anyway
        self._reports = Reports(
            self._overseer, self._chronicle, refuses=refuses, on_progress=on_progress
        )
        self._partings = Partings(self._overseer, self._dispatcher, self._clock)
        self._rebalancer = Rebalancer(
            plan.blueprint,
            self._overseer,
            first_id=1 + self._dispatcher.newest_pipeline,
            take_over=self._dispatcher.take_over,
        )
        self._restorer: Restorer
        self._state = "starting"
        self._failure: DvrtError | None = None
        self._over: asyncio.Future[DvrtError] = loop.create_future()
        self._parting: asyncio.Task[None] | None = None
        self._chronicle.read(self._dispatcher.statistics)
        if journal is not None:
            journal.on_failure = partial(self._chronicle.cluster, "journal off")

    async def on_stop(self, reason: str) -> None:
        """Nobody is left waiting: requests get an error, workers are told to end."""
        self._end_serving(Unavailable(f"the cluster was stopped: {reason}"), state="stopped")
        self._overseer.close(reason)
        self.succession.note(())
        if self._parting is not None:
            self._parting.cancel()
        await self._restorer.aclose()

    # What the cluster's owner calls, all of it on the controller's loop.

    def start(self, spawn: Spawn, *, n_external: int) -> Crew:
        """Have workers started; the caller closes the crew before its nursery."""
        crew = Crew(spawn, self._overseer.exited)
        adopted = self.succession.begin(crew, self._restorer)
        if adopted:
            self._chronicle.cluster("adopted", adopted)
        layouts, orphans = self._plan.layouts, self.succession.orphans
        self._overseer.start(layouts, crew, n_external=n_external, orphans=orphans)
        return crew

    def open(self) -> None:
        """The actor has its node: workers can join."""
        self._overseer.open(self.node, self.me)
        self._dispatcher.open(self.node, self._overseer)
        self._restorer = Restorer(
            self.node,
            self._overseer.roster,
            answer=self._restored,
            done=self._chronicle.mendings.all_restored,
            life=0 if self._plan.blueprint.options.exact else self.succession.first_number,
        )

    async def wait_ready(self) -> None:
        """Return when all stages are loaded and connected. Raises what prevented it."""
        await asyncio.shield(self._ready)

    async def wait_over(self) -> DvrtError:
        """Return, when the cluster serves no more, why; cancelling the wait changes nothing."""
        return await asyncio.shield(self._over)

    def submit(
        self, request: Request, *, stop: tuple[str, ...] = (), lingers: bool = False
    ) -> RequestStream:
        """Take a request, whose one consumer will ``leave``. Raises RequestRejected, or Unavailable
        when the cluster cannot serve.

        With a journal, one that ``lingers`` goes on for a while after that; ``stop`` is kept for
        whoever finds it.
        """
        self._require_serving()
        return self._dispatcher.submit(request, stop=stop, lingers=lingers)

    def leave(self, stream: RequestStream) -> None:
        """The consumer of a stream goes: the request ends, if it is not to linger."""
        self._dispatcher.leave(stream)

    @property
    def is_journalled(self) -> bool:
        return self.succession.is_journalled

    async def find(self, request_id: str) -> KeptStream | None:
        """The stream of a journalled request, for a consumer who will ``leave``; None: unknown."""
        return await self._dispatcher.find(request_id)

    def cancel(
        self,
        request_id: str,
        *,
        sample: int | None = None,
        reason: FinishReason = FinishReason.CANCELLED,
    ) -> None:
        """End a request or one of its samples; harmless when it has ended."""
        self._dispatcher.cancel(request_id, sample, reason)

    async def rebalance(self, split: Split) -> None:
        """Serve with another split; returns when the former pipelines are closed.

        Cancelling the wait does not stop the change. Raises ConfigError for a split that cannot
        be, Unavailable when it cannot be changed now, StageFailed when the change was undone.
        """
        self._require_serving()
        limit_s = self._watchfulness.start_limit_s
        change = self._rebalancer.begin(split, limit_s=limit_s)
        self._chronicle.cluster("rebalancing", f"to {split}")
        await asyncio.shield(change)

    def status(self) -> Status:
        parts = (self._overseer, self._dispatcher, self._chronicle)
        uptime_s = self._clock.time() - self._began
        name, failure = self._plan.card.name, self._failure
        return describe_cluster(name, self.state, failure, *parts, uptime_s=uptime_s)

    @property
    def state(self) -> str:
        """See Status."""
        return "recovering" if self._state == "serving" and missed(self._overseer) else self._state

    def events(self) -> tuple[Record, ...]:
        return self._chronicle.records()

    def is_healthy(self) -> bool:
        """False while no token can come: before and after serving, while a stage is missing, and
        when a step takes too long."""
        is_up = self._state in ("serving", "draining") and not missed(self._overseer)
        return is_up and self._chronicle.oldest_flight_s < STALL_LIMIT_S

    def check_integrity(self) -> None:
        """Raise AssertionError if rows, queue and requests do not account for each other."""
        self._dispatcher.check_integrity()

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests; wait for the running ones, then end those that are left."""
        if self._state == "serving":
            self._state = "draining"
        try:
            async with asyncio.timeout(limit_s):
                await self._dispatcher.quiet.wait()
        except TimeoutError:
            self._dispatcher.cancel_all()

    # Messages.

    def take_at_once(self, message: Message, context: Context) -> bool:
        if not isinstance(message, StepDone):
            return False
        if not self._is_over and message.id >= self.succession.first_number:  # else a former life's
            if self._dispatcher.step_done(message):
                self._partings.stepped(message.pipeline)
            self._reports.take(message)
        return True

    async def receive(self, message: Message, context: Context) -> Message | None:
        match message:
            case StepDone():
                self.take_at_once(message, context)
            case Arrived():
                self._arrived(message)
            case Replicated() | ArchiveFailed() | Swapped() | Copies() | StageLoading():
                self._reports.take(message)
            case Joined():
                self._overseer.join(message)
            case StageLoaded():
                self._overseer.loaded(message)
                self._reports.take(message)
            case Connected():
                self._overseer.connected(message)
            case LinkCut():
                self._partings.cut(message)
            case Unreached():
                self._partings.unreached(message)
            case _:
                raise ProtocolError(f"the controller does not take {type(message).__name__}")
        return None

    def _arrived(self, message: Arrived) -> None:
        seat = self._overseer.topology.seat(message.pipeline, message.stage)
        if seat is None or not seat.is_live or self._is_over:
            return
        if message.reason:
            self._chronicle.log_refused(message)
        if not self._restorer.arrived(seat, message):
            origin = self._dispatcher.pipeline_of(message.seq)
            if origin is not None and not message.reason:
                self._partings.arrived(seat, origin)
            self._dispatcher.log_arrived(
                seat, message.slot, message.seq, message.epoch, message.length
            )

    # What the overseer sees.

    def _worker_changed(self, status: WorkerStatus, reason: str) -> None:
        self._chronicle.worker(status, reason)
        self.succession.note(self._overseer.hired)
        if self._on_progress is not None:
            self._on_progress(status)

    def _lost(self, seats: list[Seat], worker: str, reason: str, silence_s: float) -> None:
        self._chronicle.lost(worker, reason, silence_s)
        member = self._overseer.roster.get(worker)
        if member is not None:
            self._chronicle.copies_lost(member.replica_actor)
        if seats:
            self._rebalancer.undo(f"worker {worker} was lost: {reason}")
        for seat in seats:
            self.succession.lost(seat)
            self._restorer.abandon(seat)
            is_driven = self._overseer.is_serving and self._dispatcher.drives(seat.key[0])
            if is_driven and not seat.is_missed:
                seat.is_missed = True
                self._chronicle.stage_lost(seat, worker)
                self._dispatcher.stage_lost(seat)

    def _returned(self, seat: Seat) -> None:
        is_restoring = self._dispatcher.stage_ready(seat)
        self._chronicle.mendings.returned(seat, is_restoring=is_restoring)

    def _settled(self) -> None:
        if not self._ready.done():
            self._state = "serving"
            self._chronicle.cluster("serving")
            self.succession.resume(self._dispatcher)
            self._ready.set_result(None)
        self._dispatcher.settled()
        if self._rebalancer.settled():
            self._chronicle.cluster(self.state, "the split was changed")

    def _degraded(self, pipeline: int | None, error: StageFailed) -> None:
        """What has its prompt is served to its end, after which the cluster fails."""
        if pipeline is None:
            self._chronicle.given_up("spares", "degraded", f"no more are hired: {error}", [])
            return
        self._state, self._failure = "degraded", error
        ended = self._dispatcher.fail_those(lambda each: each.place is not Place.TOKEN, error)
        self._chronicle.given_up(f"pipeline {pipeline}", "degraded", str(error), ended)
        self._rebalancer.close(error)
        self._parting = asyncio.get_running_loop().create_task(self._part(error))

    async def _part(self, error: StageFailed) -> None:
        await self._dispatcher.quiet.wait()
        self._overseer.give_up(error)

    def _failed(self, error: StageFailed) -> None:
        """The overseer has given up; whoever follows the workers hears of it last of all."""
        if self._is_over:
            return
        if self._overseer.is_serving:
            self._chronicle.given_up("cluster", "degraded", str(error), self._dispatcher.running)
        self._end_serving(error, state="failed")
        if self._on_progress is not None:
            known = [each for each in self.status().workers if each.name == error.worker]
            self._on_progress(known[0] if known else never_seen(error.worker))

    # What the dispatcher and the rebalancer ask for.

    def _restored(self, seat: Seat, wanted: Wanted, length: int) -> None:
        self._chronicle.mendings.restored(seat, wanted.length, length)
        self._dispatcher.log_arrived(seat, wanted.slot, wanted.seq, wanted.epoch, length)

    def _retire(self, pipeline: int) -> None:
        if self._is_over:
            return
        for seat in self._overseer.topology.row(pipeline).seats:
            self._restorer.abandon(seat)
        self._chronicle.retired(pipeline)
        self._rebalancer.retired(pipeline)
        self._partings.retired(pipeline)

    def _end_serving(self, error: DvrtError, *, state: str) -> None:
        """Take nothing new; what runs ends with this error."""
        self._state, self._failure = state, error
        self._chronicle.cluster(state, str(error))
        self._rebalancer.close(error)
        self._partings.close()
        if not self._ready.done():
            self._ready.set_exception(error)
        if not self._over.done():
            self._over.set_result(error)
        self._dispatcher.end(error)

    @property
    def _is_over(self) -> bool:
        return self._state in ("failed", "stopped")

    def _require_serving(self) -> None:
        if self._state != "serving":
            why = f": {self._failure}" if self._failure is not None else ""
            raise Unavailable(f"the cluster is {self._state}{why}")
