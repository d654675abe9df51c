"""The scheduler's hands: requests go in as events, what it orders is carried out.

All of it is synchronous and belongs to one event loop. Knows the stages by the topology alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.clock import Clock
from dvrt.cluster.chronicle import Chronicle
from dvrt.cluster.journal import Journal
from dvrt.cluster.journal_store import Story
from dvrt.cluster.keeping import Keeper, ensure_writable, refusals
from dvrt.cluster.kept_stream import KeptStream
from dvrt.cluster.overseer import Overseer
from dvrt.cluster.plan import ClusterPlan, PipelineLayout
from dvrt.cluster.stream import RequestStream
from dvrt.cluster.topology import Seat
from dvrt.control.events import (
    Cancel,
    Command,
    Emit,
    Entered,
    Event,
    LogArrived,
    Rebalance,
    Reject,
    Restore,
    Retired,
    Rewind,
    Rewound,
    RunStep,
    StageLost,
    StageReady,
    StepFinished,
    StepsLost,
    Submit,
    Tick,
)
from dvrt.control.recovery import TRANSFER_LIMIT_S
from dvrt.control.scheduler import Scheduler, SchedulerStatistics
from dvrt.control.steps import Step, StepDone
from dvrt.errors import ActorError, DvrtError, RequestRejected, TransportError
from dvrt.protocol import messages
from dvrt.protocol.messages import Forward
from dvrt.requests import FinishReason, Request
from dvrt.wire import encode

RestoreCallback = Callable[[Seat, Restore], None]


class Dispatcher:
    """One scheduler, the streams of its requests, and the pipelines that it drives.

    ``restore(seat, command)`` has logs brought back; ``retire(pipeline)`` is called, in a turn of
    its own, for a pipeline that no request is left in. With a ``keeper`` nothing is given to a
    stream before it is written down. Numbers begin at ``first_number``.
    """

    def __init__(
        self,
        plan: ClusterPlan,
        chronicle: Chronicle,
        clock: Clock,
        *,
        restore: RestoreCallback,
        retire: Callable[[int], None],
        keeper: Keeper | None = None,
        first_number: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._chronicle, self._clock = chronicle, clock
        self._restore, self._retire = restore, retire
        self._keeper = keeper
        self._scheduler = Scheduler(
            [layout.plan for layout in plan.layouts], plan.limits, first_number=first_number
        )
        self._driven = {layout.plan.id for layout in plan.layouts}
        self._streams: dict[str, RequestStream] = {}
        self._firsts: dict[str, ActorRef] = {}
        self._rewinding: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.quiet = asyncio.Event()
        self.quiet.set()
        self._node: Node
        self._overseer: Overseer

    def open(self, node: Node, overseer: Overseer) -> None:
        """Steps go from this node to the stages that the overseer knows."""
        self._node, self._overseer = node, overseer

    @property
    def newest_pipeline(self) -> int:
        return max(self._driven)

    def drives(self, pipeline: int) -> bool:
        return pipeline in self._driven

    def statistics(self) -> SchedulerStatistics:
        return self._scheduler.statistics()

    def check_integrity(self) -> None:
        """Raise AssertionError if the scheduler's books do not account for each other."""
        self._scheduler.check_integrity()

    # What happens.

    def submit(
        self, request: Request, *, stop: tuple[str, ...] = (), lingers: bool = False
    ) -> RequestStream:
        """Take a request, for its one consumer. Raises RequestRejected."""
        now = self._clock.time()
        if request.id in self._streams:  # its last tokens are being written down, at least
            text = f"request {request.id!r} is already running"
            raise RequestRejected(text, param="request_id")
        if self._keeper is not None:
            ensure_writable(request, stop)
        commands = self._scheduler.handle(Submit(request=request, now=now))
        for command in commands:
            if isinstance(command, Reject):
                self._chronicle.refused(command.error)
                raise command.error
        stream: RequestStream
        if self._keeper is None:
            stream = RequestStream(request, submitted=now)
        else:
            stream = self._keeper.begin(request, stop=stop, lingers=lingers, now=now)
            stream.enter()
        self._serve(stream, commands)
        return stream

    def resume(self, stories: Iterable[Story]) -> None:
        """Go on with requests of an earlier life; who finds them is their consumer."""
        assert self._keeper is not None
        for story in stories:
            stream, submit = self._keeper.resume(story, self._clock.time())
            commands = self._scheduler.handle(submit)
            rejects = [each.error for each in commands if isinstance(each, Reject)]
            self._serve(stream, [] if rejects else commands)
            stream.linger(self._give_up)
            if rejects:
                self._publish(refusals(story, rejects[0]))

    async def find(self, request_id: str) -> KeptStream | None:
        """The stream of a request that the journal keeps, for one more consumer."""
        stream = self._streams.get(request_id)
        if stream is None and self._keeper is not None:
            stream = await self._keeper.find(request_id, self._clock.time())
            stream = self._streams.get(request_id, stream)
        if not isinstance(stream, KeptStream):
            return None
        stream.enter()
        return stream

    def leave(self, stream: RequestStream) -> None:
        """A consumer goes."""
        stream.leave(self._give_up)

    def _serve(self, stream: RequestStream, commands: list[Command]) -> None:
        request = stream.request
        self._streams[request.id] = stream
        self._chronicle.submitted(request.id)
        self.quiet.clear()
        self._perform(commands)
        if request.deadline_s is not None:
            self._wake_at(max(self._clock.time(), stream.submitted + request.deadline_s))

    def _give_up(self, request_id: str) -> None:
        """Nobody wants it any more."""
        self.cancel(request_id, None, FinishReason.CANCELLED)

    def cancel(self, request_id: str, sample: int | None, reason: FinishReason) -> None:
        """End a request or one of its samples; harmless when it has ended."""
        if request_id in self._streams:
            now = self._clock.time()
            self._handle(Cancel(request_id=request_id, now=now, reason=reason, sample=sample))

    def cancel_all(self) -> None:
        for request_id in list(self._streams):
            self.cancel(request_id, None, FinishReason.CANCELLED)

    def step_done(self, done: StepDone) -> bool:
        """Send the next step first: everything else can be done while it is on its way. Whether
        the step still counted."""
        self._handle(StepFinished(done=done, now=self._clock.time()))
        return self._chronicle.landed(done)

    def log_arrived(self, seat: Seat, slot: int, seq: int, epoch: int, length: int) -> None:
        pipeline, stage = seat.key
        if pipeline in self._driven:
            event = LogArrived(
                pipeline=pipeline,
                stage=stage,
                slot=slot,
                seq=seq,
                epoch=epoch,
                length=length,
                now=self._clock.time(),
            )
            self._handle(event)

    def pipeline_of(self, seq: int) -> int | None:
        """The pipeline in which a sequence has its row; None: it has none, or has ended."""
        return self._scheduler.pipeline_of(seq)

    def stage_lost(self, seat: Seat) -> None:
        pipeline, stage = seat.key
        self._handle(StageLost(pipeline=pipeline, stage=stage, now=self._clock.time()))
        self._wake()

    def resume_from(self, journal: Journal) -> None:
        """Go on with what an earlier life of the controller has left."""
        if journal.remains:
            what = f"{len(journal.remains)} requests, in generation {journal.generation}"
            self._chronicle.cluster("resuming", what)
            self.resume(journal.remains)
            journal.remains = ()

    def steps_lost(self, pipeline: int) -> None:
        """Steps in flight are void, if the pipeline is one that is driven."""
        if pipeline in self._driven:
            self._rewinding.add(pipeline)
            self._handle(StepsLost(pipeline=pipeline, now=self._clock.time()))

    def settled(self) -> None:
        """Every stage has confirmed what it was told: no void step is left anywhere."""
        rewound, self._rewinding = self._rewinding, set()
        for pipeline in rewound & self._driven:
            self._handle(Rewound(pipeline=pipeline, now=self._clock.time()))

    def stage_ready(self, seat: Seat) -> bool:
        """Whether logs are to be restored."""
        pipeline, stage = seat.key
        event = StageReady(pipeline=pipeline, stage=stage, now=self._clock.time())
        commands = self._scheduler.handle(event)
        self._perform(commands)
        self._wake()
        return any(isinstance(command, Restore) for command in commands)

    def take_over(self, layouts: Iterable[PipelineLayout]) -> None:
        """These pipelines are ready; the others retire."""
        new = tuple(layout.plan for layout in layouts)
        self._driven |= {plan.id for plan in new}
        self._handle(Rebalance(pipelines=new, now=self._clock.time()))

    def fail_those(
        self, is_affected: Callable[[RequestStream], bool], error: DvrtError
    ) -> list[str]:
        """End some requests with this error; their ids. A journal still has them as running."""
        failed = [name for name, stream in self._streams.items() if is_affected(stream)]
        for name in failed:
            self._streams.pop(name).fail(error)
            cancel = Cancel(request_id=name, now=self._clock.time(), reason=FinishReason.ERROR)
            commands = self._scheduler.handle(cancel)
            self._perform([each for each in commands if not isinstance(each, Emit)])
        if not self._streams:
            self.quiet.set()
        return failed

    @property
    def running(self) -> list[str]:
        """The ids of all requests."""
        return list(self._streams)

    def end(self, error: DvrtError) -> None:
        """All requests end with this error, and nothing happens any more."""
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self.quiet.set()
        if self._timer is not None:
            self._timer.cancel()

    # Events and commands.

    def _handle(self, event: Event) -> None:
        self._perform(self._scheduler.handle(event))

    def _perform(self, commands: list[Command]) -> None:
        """Carry commands out; steps leave before anything is told to clients."""
        for command in commands:
            if isinstance(command, RunStep):
                self._launch(command.step)
        for command in commands:
            match command:
                case RunStep() | Emit():
                    pass
                case Entered():
                    self._entered(command)
                case Rewind():
                    self._rewind(command)
                case Restore(pipeline=pipeline, stage=stage):
                    seat = self._overseer.topology.seat(pipeline, stage)
                    assert seat is not None, f"stage {stage} of pipeline {pipeline} is closed"
                    self._restore(seat, command)
                case Retired(pipeline=pipeline):
                    self._driven.discard(pipeline)
                    self._loop.call_soon(self._retire, pipeline)
                case Reject():
                    raise AssertionError("only a submission can be rejected")
        self._publish([command for command in commands if isinstance(command, Emit)])

    def _publish(self, emits: list[Emit]) -> None:
        """To the journal, if there is one, and then to the clients."""
        if self._keeper is None:
            self._deliver(emits)
        elif emits:
            then = partial(self._deliver, emits)
            self._keeper.record(emits, self._scheduler.sequences_of, then)

    def _deliver(self, emits: list[Emit]) -> None:
        for emit in emits:
            self._emit(emit)

    def _launch(self, step: Step) -> None:
        seat = self._overseer.topology.seat(step.pipeline, 0)
        assert seat is not None, f"step {step.id} is for pipeline {step.pipeline}, which is closed"
        self._chronicle.launched(step)
        if any(item.commits for items in (step.ships, step.chunks) for item in items):
            self._wake_at(self._clock.time() + TRANSFER_LIMIT_S + 1.0)
        first = self._firsts.get(seat.actor)
        if first is None:
            first = self._firsts[seat.actor] = self._node.ref(seat.actor)
        with suppress(ActorError, TransportError):  # the watch on the stage tells why it is gone
            first.tell_nowait(Forward(step=encode(step)))

    def _rewind(self, rewind: Rewind) -> None:
        self._chronicle.rewound(rewind)
        order = messages.Rewind(below=rewind.below)
        for seat in self._overseer.topology.row(rewind.pipeline).seats:
            if seat.is_live:
                self._overseer.roster.tell(seat.actor, order)

    def _entered(self, entered: Entered) -> None:
        stream = self._streams.get(entered.request_id)
        if stream is not None:
            stream.entered(entered.place, entered.now)
            self._chronicle.entered(entered)

    def _emit(self, emit: Emit) -> None:
        stream = self._streams.get(emit.request_id)
        if stream is None:
            return
        gap = stream.put(emit, self._clock.time())
        if gap is not None:
            self._chronicle.paced(gap)
        if stream.is_ended:
            del self._streams[emit.request_id]
            self._chronicle.finished(stream, emit)
            if not self._streams:
                self.quiet.set()

    # Deadlines.

    def _wake(self) -> None:
        at = self._scheduler.next_deadline()
        if at is not None:
            self._wake_at(at)

    def _wake_at(self, at: float) -> None:
        """Have deadlines looked at no later than then."""
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick(now=self._clock.time()))
        self._wake()
