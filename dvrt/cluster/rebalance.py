"""Changing the split of a serving cluster: one change at a time, whole or undone.

New pipelines are loaded beside the old ones; once they are ready they take over, and the old ones
close when the last request has left them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum

from dvrt.cluster.overseer import Overseer
from dvrt.cluster.plan import Blueprint, PipelineLayout, Split
from dvrt.errors import DvrtError, StageFailed, Unavailable

TakeOver = Callable[[tuple[PipelineLayout, ...]], None]


class Phase(StrEnum):
    """``LOADING``: new pipelines become ready. ``MOVING``: requests leave the old ones."""

    LOADING = "loading"
    MOVING = "moving"


class Rebalancer:
    """``take_over`` is called with the new pipelines when all their stages are ready."""

    def __init__(
        self, blueprint: Blueprint, overseer: Overseer, *, first_id: int, take_over: TakeOver
    ) -> None:
        self._blueprint, self._overseer = blueprint, overseer
        self._next_id = first_id
        self._take_over = take_over
        self._layouts: tuple[PipelineLayout, ...] = ()
        self._retiring: set[int] = set()
        self._over: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.phase: Phase | None = None

    def begin(self, split: Split, *, limit_s: float) -> asyncio.Future[None]:
        """Load the pipelines of another split; the future is done when the old ones are closed.

        They have ``limit_s`` to become ready, else all of it is undone. Raises ConfigError for a
        split that cannot be and Unavailable while another change, or a recovery, is under way.
        """
        topology = self._overseer.topology
        if self.phase is not None:
            raise Unavailable("the split is being changed already; try again when that is done")
        layouts = self._blueprint.lay_out(split, first_id=self._next_id)
        if not topology.is_ready:
            raise Unavailable("a stage is being replaced; change the split when it is back")
        self._next_id += len(layouts)
        self._layouts, self.phase = layouts, Phase.LOADING
        self._retiring = {row.plan.id for row in topology.rows}
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        self._over.add_done_callback(lambda over: over.cancelled() or over.exception())
        self._timer = loop.call_later(limit_s, self.undo, f"it was not ready in {limit_s:g} s")
        n_workers = sum(len(layout.loads) for layout in layouts)
        self._overseer.add(layouts, self._overseer.crew_for(n_workers))
        return self._over

    def settled(self) -> bool:
        """All stages that there are, new ones among them, are ready; whether this ends a change."""
        if self.phase is Phase.LOADING and self._overseer.topology.has(self._layouts[-1].plan.id):
            self._stop_timer()
            self.phase = Phase.MOVING
            self._take_over(self._layouts)
        elif self.phase is Phase.MOVING and not self._retiring:
            self._end(None)
            return True
        return False

    def retired(self, pipeline: int) -> None:
        """No request is left in an old pipeline."""
        self._retiring.discard(pipeline)
        self._overseer.drop(pipeline, "its requests are served by other stages")

    def undo(self, reason: str) -> None:
        """Close what was being loaded; nothing has changed. Harmless at any other time."""
        if self.phase is not Phase.LOADING:
            return
        layouts = self._layouts
        text = f"the change of the split was undone: {reason}"
        self._end(StageFailed("rebalance", reason, text=text))
        for layout in layouts:
            if self._overseer.topology.has(layout.plan.id):
                self._overseer.drop(layout.plan.id, "the change of the split was undone")

    def close(self, error: DvrtError) -> None:
        """The cluster ends."""
        self._end(error)

    def _end(self, error: DvrtError | None) -> None:
        self._stop_timer()
        self.phase, self._layouts = None, ()
        over, self._over = self._over, None
        if over is None or over.done():
            return
        if error is None:
            over.set_result(None)
        else:
            over.set_exception(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
