"""The stage actor: receives steps, has them computed, passes them on, all in order.

Owns the compute and the executor of one stage. Knows nothing of requests or of other stages than
the next one.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from functools import partial

from dvrt.actors.actor import Actor, Context
from dvrt.actors.compute import Compute, Done
from dvrt.actors.executor import Executed, StageExecutor
from dvrt.actors.messages import (
    Connect,
    Connected,
    Forward,
    LoadStage,
    StageLoaded,
    StopWorker,
)
from dvrt.actors.node import household
from dvrt.actors.ref import ActorRef
from dvrt.buffers import Region
from dvrt.control.steps import Step, StepDone
from dvrt.errors import ProtocolError
from dvrt.wire import Message

MakeExecutor = Callable[[LoadStage], StageExecutor]
MakeCompute = Callable[[str], Compute]


class StageActor(Actor):
    """One stage of a pipeline. An error while computing ends it; its watchers are told why."""

    def __init__(
        self, worker: str, *, make_executor: MakeExecutor, make_compute: MakeCompute
    ) -> None:
        self._worker = worker
        self._make_executor = make_executor
        self._make_compute = make_compute
        self._compute: Compute | None = None
        self._executor: StageExecutor | None = None
        self._controller: ActorRef | None = None
        self._next: ActorRef | None = None
        self._cost_s = 0.0
        self._is_last = False

    async def on_start(self) -> None:
        self._compute = self._make_compute(self._worker)

    async def on_stop(self, reason: str) -> None:
        if self._compute is not None:
            await asyncio.to_thread(self._compute.close)

    async def receive(self, message: Message, context: Context) -> Message | None:
        match message:
            case Forward():
                self._accept(message, context)
            case LoadStage():
                await self._load(message)
            case Connect(next_actor=address):
                assert self._controller is not None
                self._next = self.node.ref(address)
                await self._controller.tell(Connected(worker=self._worker))
            case StopWorker(reason=reason):
                self.stop(reason)
            case _:
                raise ProtocolError(f"a stage does not take {type(message).__name__}")
        return None

    async def _load(self, order: LoadStage) -> None:
        assert self._compute is not None
        began = time.monotonic()
        done = await self._compute.submit(lambda: self._make_executor(order))
        self._executor = done.value
        self._controller = self.node.ref(order.controller)
        self._cost_s, self._is_last = order.null_step_s, order.stage == order.n_stages - 1
        if household.get() is None:  # a process of its own, whose objects stay to its end
            gc.collect()
            gc.freeze()
        loaded = StageLoaded(
            worker=self._worker,
            weights_bytes=done.value.model.weights_bytes,
            kv_bytes=done.value.model.kv_bytes,
            load_s=time.monotonic() - began,
            device=order.spec.device,
        )
        await self._controller.tell(loaded)

    def _accept(self, forward: Forward, context: Context) -> None:
        executor, compute = self._executor, self._compute
        if executor is None or compute is None or self._next is None:
            raise ProtocolError("a step came before the stage was loaded and connected")
        step, received = forward.step, context.attachments
        future = compute.submit(lambda: executor.execute(step, received), cost_s=self._cost_s)
        future.add_done_callback(partial(self._pass_on, forward))

    def _pass_on(self, forward: Forward, future: asyncio.Future[Done[Executed]]) -> None:
        """Send a result on; futures complete, and so results leave, in the order of the steps."""
        if future.cancelled():
            return
        try:
            self._send(forward, future.result())
        except Exception as error:  # whatever the model raised: this stage cannot go on
            self.fail(error)

    def _send(self, forward: Forward, done: Done[Executed]) -> None:
        assert self._next is not None
        spans = (*forward.spans, (done.began, done.busy_s))
        if self._is_last:
            self._next.tell_nowait(_step_done(forward.step, done.value, spans))
            return
        regions = [Region.of(hidden) for hidden in done.value.hidden]
        self._next.tell_nowait(Forward(step=forward.step, spans=spans), *regions)


def _step_done(step: Step, executed: Executed, spans: tuple[tuple[float, float], ...]) -> StepDone:
    return StepDone(
        id=step.id,
        microbatch=step.microbatch,
        decoded=executed.decoded,
        firsts=executed.firsts,
        spans=spans,
    )
