"""The stage actor: receives steps, has them computed, passes them on, all in order.

Owns the compute and the executor of one stage, and its ways out: to the next stage, to other
pipelines (Shipper), to those who keep copies (Replicator). Knows nothing of requests. Survivors
do not care who dies: what cannot be delivered is dropped, and the controller says what follows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from dvrt.actors.actor import Actor, Context
from dvrt.actors.ref import ActorRef
from dvrt.actors.watches import Watch
from dvrt.control.steps import Step, StepDone
from dvrt.errors import (
    ActorError,
    DvrtError,
    OutOfMemory,
    ProtocolError,
    StageFailed,
    TransportError,
)
from dvrt.models.swap import SwappingModel
from dvrt.protocol.messages import (
    Arrived,
    Commit,
    Connect,
    Connected,
    Copies,
    Entries,
    Forward,
    LinkCut,
    LoadStage,
    ReplicaGap,
    Rewind,
    StageLoaded,
    StageLoading,
    Swapped,
    Unreached,
)
from dvrt.stages.cargo import Cargo
from dvrt.stages.compute import Compute, Done
from dvrt.stages.copy_log import CopyLog
from dvrt.stages.executor import Executed, StageExecutor
from dvrt.stages.intake import Intake
from dvrt.stages.load_progress import LoadProgress
from dvrt.stages.pace import step_cost_s
from dvrt.stages.replicator import Replicator
from dvrt.stages.shipper import Shipper
from dvrt.stages.step_watch import StepWatch
from dvrt.stages.swapping import Swapping
from dvrt.stages.watched_compute import WatchedCompute
from dvrt.wire import Message, decode

MakeExecutor = Callable[[LoadStage, LoadProgress], StageExecutor]
"""Runs on the compute, and tells how far the weights have come."""
MakeCompute = Callable[[str], Compute]
"""A compute by this name, for the device of the stage."""
WaitWeights = Callable[[LoadStage], Awaitable[None]]


class StageActor(Actor):
    """One stage of a pipeline. An error while computing ends it; its watchers are told why."""

    def __init__(
        self,
        worker: str,
        order: LoadStage,
        *,
        make_executor: MakeExecutor,
        make_compute: MakeCompute,
        wait_weights: WaitWeights,
        settle: Callable[[], None],
    ) -> None:
        """``settle`` is called when the stage is loaded: it stays for long."""
        self._worker, self._order = worker, order
        self._make_executor, self._make_compute = make_executor, make_compute
        self._wait_weights, self._settle = wait_weights, settle
        self._name = f"p{order.pipeline}-s{order.stage}"
        self._is_last = order.stage == order.n_stages - 1
        self._executor: StageExecutor | None = None
        self._swapping: Swapping | None = None
        self._next: ActorRef | None = None
        self._next_watch: Watch | None = None
        self._is_cut = False
        self._below, self._newest = 0, -1
        self._is_stuck = False
        self._compute: Compute
        self._copies: CopyLog
        self._steps: StepWatch
        self._aside: WatchedCompute
        self._loading: asyncio.Task[None] | None = None
        self._shipper: Shipper
        self._replicator: Replicator
        self._intake: Intake

    async def on_start(self) -> None:
        self._controller = self.node.ref(self._order.controller)
        self._compute = self._make_compute(f"{self._worker} {self._name}")
        self._copies = CopyLog(self._order, self._tell)
        self._steps = StepWatch(self._order.step_limit_s, self._stuck)
        self._aside = WatchedCompute(self._compute, self._steps)
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def on_stop(self, reason: str) -> None:
        self._is_cut = True
        self._copies.close()
        self._steps.close()
        if self._loading is not None:
            self._loading.cancel()
        if self._executor is not None:
            await self._shipper.aclose()
            await self._replicator.aclose()
        if self._swapping is not None:
            await self._swapping.aclose()
        if self._is_stuck:
            self._compute.abandon()
        else:
            await asyncio.to_thread(self._compute.close)
        self._executor = None

    def on_abort(self) -> None:
        if self._loading is None:
            return
        self._loading.cancel()
        self._steps.close()
        self._copies.abort()
        if self._executor is not None:
            self._shipper.abort()
            self._replicator.abort()
        if self._swapping is not None:
            self._swapping.abort()
        self._compute.abandon()

    def take_at_once(self, message: Message, context: Context) -> bool:
        if not isinstance(message, Forward):
            return False
        step = decode(message.step)
        if not isinstance(step, Step):
            raise ProtocolError(f"a stage cannot compute a {type(step).__name__}")
        self._accept(step, message, context)
        return True

    async def receive(self, message: Message, context: Context) -> Message | None:
        match message:
            case Forward():
                self.take_at_once(message, context)
            case Entries():
                self._loaded()
                data = context.attachments[0] if context.attachments else b""
                self._intake.entries(message, data)
            case Commit():
                self._loaded()
                self._intake.commit(message)
            case Connect():
                await self._connect(message)
            case Rewind(below=below):
                self._below = max(self._below, below)
            case ReplicaGap():
                self._loaded()
                self._replicator.gap(message)
            case _:
                raise ProtocolError(f"a stage does not take {type(message).__name__}")
        return None

    # Coming to life.

    async def _load(self) -> None:
        try:
            await self._load_and_report()
        except (ActorError, TransportError):  # nobody is there to hear of it
            return
        except Exception as error:  # whatever is wrong with the checkpoint or the machine
            self.fail(error)

    async def _load_and_report(self) -> None:
        order, began = self._order, time.monotonic()
        await self._wait_weights(order)
        load_s = order.timing.load_s if order.timing is not None else 0.0
        progress = LoadProgress(self._worker, order, self._tell)
        done = await self._compute.submit(
            lambda: self._make_executor(order, progress), cost_s=load_s
        )
        executor = self._executor = done.value
        self._settle()
        model = executor.model
        self._shipper = Shipper(
            self.me,
            make_ref=self.node.ref,
            pack=self._pack,
            entry_bytes=model.entry_bytes,
            copies=self._copies,
            on_failure=self.fail,
            on_unreached=self._unreached,
        )
        executor.outlet = self._shipper
        self._intake = Intake(
            order, self._aside, executor.ledger, tell=self._tell, on_failure=self.fail
        )
        self._replicator = Replicator(
            self.node,
            self._aside,
            executor.ledger,
            origin=self.me.address,
            pipeline=order.pipeline,
            stage=order.stage,
            layers=executor.span,
            entry_bytes=model.entry_bytes(executor.span.start, executor.span.stop),
            copies=self._copies,
        )
        if isinstance(model, SwappingModel):
            self._swapping = Swapping(
                order,
                model,
                compute=self._compute,
                make_compute=self._make_compute,
                copies=self._copies,
                tell=self._tell,
                on_failure=self.fail,
            )
        loaded = StageLoaded(
            worker=self._worker,
            actor=self.me.address,
            pipeline=order.pipeline,
            stage=order.stage,
            weights_bytes=model.weights_bytes,
            kv_bytes=model.kv_bytes,
            load_s=time.monotonic() - began,
            device=order.spec.device,
            swap=self._swapping.figures() if self._swapping is not None else None,
        )
        await self._controller.tell(loaded)

    async def _connect(self, connect: Connect) -> None:
        self._loaded()
        self._next, self._is_cut = self.node.ref(connect.next_actor), False
        if self._next_watch is not None:
            self._next_watch.cancel()
        if not self._is_last:  # the controller watches the last one itself
            self._next_watch = self.node.watch(self._next, lambda _, why: self._cut(why))
        self._shipper.connect(connect.targets)
        self._replicator.connect(connect.replicas)
        order = self._order
        connected = Connected(worker=self._worker, pipeline=order.pipeline, stage=order.stage)
        with suppress(ActorError, TransportError):
            await self._controller.tell(connected)

    def _loaded(self) -> StageExecutor:
        if self._executor is None:
            raise ProtocolError(f"{self._name} is not loaded yet")
        return self._executor

    # Steps.

    def _accept(self, step: Step, forward: Forward, context: Context) -> None:
        executor = self._loaded()
        if step.id < self._below or step.id <= self._newest:  # or of a neighbour that is gone
            return
        self._newest = step.id
        received = context.attachments
        cost_s = step_cost_s(self._order, step)

        def work() -> Executed | None:
            return executor.execute(step, received) if step.id >= self._below else None

        if self._swapping is not None:
            future = self._swapping.submit(step, work, cost_s=cost_s)
        else:
            future = self._compute.submit(work, cost_s=cost_s)
        self._steps.began()
        self._replicator.busy()
        future.add_done_callback(partial(self._pass_on, step, forward))

    def _pass_on(
        self, step: Step, forward: Forward, future: asyncio.Future[Done[Executed | None]]
    ) -> None:
        """Send a result on; futures complete, and so results leave, in the order of the steps."""
        self._steps.ended()
        if future.cancelled():
            return
        try:
            self._finish(step, forward, future.result())
        except Exception as error:  # whatever the model raised: this stage cannot go on
            self.fail(error)

    def _finish(self, step: Step, forward: Forward, done: Done[Executed | None]) -> None:
        """Results leave first; copies are behind them."""
        is_void = step.id < self._below
        if done.value is not None and not is_void and not self._is_cut:
            try:
                self._send(step, forward, done.value, (done.began, done.busy_s))
            except (ActorError, TransportError, OutOfMemory) as error:  # it is dead, or stuck
                self._cut(str(error))
        self._replicator.stepped(step, is_busy=self._steps.n_steps > 0)

    def _stuck(self) -> None:
        self._is_stuck = True
        limit_s = self._order.step_limit_s
        self.fail(StageFailed(self._worker, f"nothing was computed for {limit_s:g} s: it is stuck"))

    def _send(
        self, step: Step, forward: Forward, executed: Executed, span: tuple[float, float]
    ) -> None:
        spans = (*forward.spans, span)
        if self._next is None:
            raise ProtocolError(f"{self._name} has no next stage yet")
        if self._is_last:
            self._next.tell_nowait(_step_done(step, executed, spans))
            return
        self._next.tell_nowait(Forward(step=forward.step, spans=spans), *executed.hidden)

    def _cut(self, reason: str) -> None:
        """Later steps must not overtake one that is lost: nothing is passed on for now."""
        if self._is_cut:
            return
        self._is_cut = True
        order = self._order
        self._tell(
            LinkCut(
                pipeline=order.pipeline,
                stage=order.stage,
                next_actor=str(self._next),
                reason=reason,
            )
        )

    def _unreached(self, actor: str, reason: str) -> None:
        order = self._order
        self._tell(
            Unreached(pipeline=order.pipeline, stage=order.stage, actor=actor, reason=reason)
        )

    def _tell(self, note: StageLoading | LinkCut | Unreached | Copies | Swapped | Arrived) -> None:
        """To the controller, if it is there."""
        with suppress(DvrtError):
            self._controller.tell_nowait(note)

    async def _pack(self, cargo: Cargo) -> Any:
        """The bytes of a cargo whose turn has come; None when its log is not there any more."""
        ledger = self._loaded().ledger
        return (await self._aside.submit(lambda: ledger.pack(cargo))).value


def _step_done(step: Step, executed: Executed, spans: tuple[tuple[float, float], ...]) -> StepDone:
    return StepDone(
        id=step.id,
        microbatch=step.microbatch,
        pipeline=step.pipeline,
        decoded=executed.decoded,
        firsts=executed.firsts,
        spans=spans,
    )
