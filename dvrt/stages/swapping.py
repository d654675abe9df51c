"""What a stage needs to swap: a pager with its two lanes, and what the controller is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from dvrt.control.steps import Step
from dvrt.models.swap import SwappingModel, SwapTrial
from dvrt.models.swap_figures import SwapFigures
from dvrt.protocol.messages import LoadStage, Swapped
from dvrt.stages.compute import Compute, Done
from dvrt.stages.copy_log import CopyLog
from dvrt.stages.pager import Copied, Pager

T = TypeVar("T")

TELL_AFTER_S = 0.2
"""How old the controller's figures of swapping may be; a word after each step would cost steps."""


class Swapping:
    """The steps of one stage and the copies that they need; made on the stage's loop.

    ``tell`` gets the figures now and then, while there are copies; ``on_failure`` hears of a copy
    that failed, after which the stage cannot go on.
    """

    def __init__(
        self,
        order: LoadStage,
        model: SwappingModel,
        *,
        compute: Compute,
        make_compute: Callable[[str], Compute],
        copies: CopyLog,
        tell: Callable[[Swapped], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        spec = order.spec
        name = f"p{order.pipeline}-s{order.stage}"
        self._order = order
        self._lanes = (make_compute(f"{name} copies in"), make_compute(f"{name} copies out"))
        self._copies, self._tell = copies, tell
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        entry_bytes = _entry_bytes(order, model)
        self._pager = Pager(
            model,
            compute=compute,
            lane_in=self._lanes[0],
            lane_out=self._lanes[1],
            entry_bytes=entry_bytes,
            bandwidth=spec.swap_bandwidth,
            clock=copies.clock,
            on_copied=self._copied,
            on_failure=on_failure,
        )
        trial = _trial(order, model)
        limit = spec.swap_bandwidth or trial.bandwidth
        self._tried = SwapFigures(
            device_slots=spec.device_slots,
            batch_size=spec.batch_size,
            entry_bytes=entry_bytes,
            max_context=spec.max_context,
            host_kv_bytes=model.host_kv_bytes,
            step_s=trial.step_s,
            bandwidth=min(limit, trial.bandwidth or limit),
        )

    def submit(
        self, step: Step, work: Callable[[], T], *, cost_s: float = 0.0
    ) -> asyncio.Future[Done[T]]:
        """See ``Pager.submit``."""
        return self._pager.submit(step, work, cost_s=cost_s)

    def figures(self) -> SwapFigures:
        """Measured so far; of the trial at load time where there is nothing yet."""
        seen, tried = self._pager.statistics(), self._tried
        return replace(
            tried,
            step_s=seen.step_s / seen.steps if seen.steps else tried.step_s,
            bandwidth=seen.in_bytes / seen.in_s if seen.in_s else tried.bandwidth,
            in_bytes=seen.in_bytes,
            out_bytes=seen.out_bytes,
            waited_s=seen.waited_s,
            steps=seen.steps,
        )

    async def aclose(self) -> None:
        """Drop what has not begun; waits for a copy that has. Before the compute is closed."""
        self._be_silent()
        self._pager.close()
        for lane in self._lanes:
            await asyncio.to_thread(lane.close)

    def abort(self) -> None:
        """As ``aclose``, without waiting."""
        self._be_silent()
        self._pager.close()
        for lane in self._lanes:
            lane.abandon()

    def _copied(self, copied: Copied) -> None:
        if self._timer is None and not self._is_closed:
            self._timer = self._loop.call_later(TELL_AFTER_S, self._tell_now)
        lane, name = f"copies {copied.direction}", f"{copied.direction} {copied.microbatch}"
        self._copies.add(lane, name, copied.began, copied.nbytes, copied.busy_s)

    def _tell_now(self) -> None:
        self._timer = None
        order = self._order
        note = Swapped(pipeline=order.pipeline, stage=order.stage, figures=self.figures())
        self._tell(note)

    def _be_silent(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()


def _entry_bytes(order: LoadStage, model: SwappingModel) -> int:
    pretended = order.timing.entry_bytes if order.timing is not None else 0
    return pretended or model.entry_bytes(order.spec.first, order.spec.stop)


def _trial(order: LoadStage, model: SwappingModel) -> SwapTrial:
    """What the model tried; of the null device what it was told."""
    if model.trial is not None:
        return model.trial
    spec = order.spec
    step_s = order.null_step_s
    if order.timing is not None:
        step_s = order.timing.decode_step_s([spec.max_context // 2] * spec.batch_size)
    return SwapTrial(step_s, spec.swap_bandwidth)
