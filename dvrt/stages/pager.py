"""Brings microbatches to the device before their steps compute, and back out what steps added.

Owns the order of steps and copies of a stage that swaps, on the event loop. The copies are made on
two lanes of their own, one a direction. What a step computes it does not know.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from dvrt.clock import Clock
from dvrt.control.steps import Step
from dvrt.models.swap import SwappingModel
from dvrt.models.swap_ranges import Range
from dvrt.stages.compute import Compute, Done

T = TypeVar("T")

_MOST_GIVEN = 2
"""Steps that compute has at a time: one it works on, and one so that it need not wait for us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A copy that is over: ``direction`` is in or out, of one microbatch; seconds of the clock."""

    direction: str
    microbatch: int
    began: float
    busy_s: float
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PagerStatistics:
    """Bytes and seconds on the two lanes; ``waited_s`` is what compute stood still for copies.

    ``steps`` and ``step_s`` are the number and the seconds of those that only decode.
    """

    in_bytes: int
    out_bytes: int
    in_s: float
    out_s: float
    waited_s: float
    steps: int
    step_s: float


@dataclass(slots=True)
class _Waiting:
    step: Step
    needs: dict[int, int]
    work: Callable[[], Any]
    cost_s: float
    future: asyncio.Future[Any]
    since: float


class Pager:
    """Steps are computed first in, first out, each once its logs are on the device.

    While one step computes, logs are copied in for the next: those of the next step in the queue,
    else of the microbatch whose turn is next. A frame is given up only when its step is over and
    what that added has gone out. ``on_copied`` hears of each copy, ``on_failure`` of one that
    failed, which ends the stage.
    """

    def __init__(
        self,
        model: SwappingModel,
        *,
        compute: Compute,
        lane_in: Compute,
        lane_out: Compute,
        entry_bytes: int,
        bandwidth: float,
        clock: Clock,
        on_copied: Callable[[Copied], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """``bandwidth`` is the bytes a second that each lane is held to; 0 is no limit."""
        self._model = model
        self._compute, self._lane_in, self._lane_out = compute, lane_in, lane_out
        self._entry_bytes, self._bandwidth = entry_bytes, bandwidth
        self._clock = clock
        self._on_copied, self._on_failure = on_copied, on_failure
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._computing: Counter[int] = Counter()
        self._loading: set[int] = set()
        self._rows: dict[int, tuple[int, ...]] = {}
        self._free_since = clock.time()
        self._bytes, self._seconds = {"in": 0, "out": 0}, {"in": 0.0, "out": 0.0}
        self._waited_s = self._step_s = 0.0
        self._n_steps = 0

    def submit(
        self, step: Step, work: Callable[[], T], *, cost_s: float = 0.0
    ) -> asyncio.Future[Done[T]]:
        """As ``Compute.submit``, for the work of a step."""
        future: asyncio.Future[Done[T]] = self._loop.create_future()
        waiting = _Waiting(step, _needs(step), work, cost_s, future, self._clock.time())
        self._queue.append(waiting)
        self._advance()
        return future

    def statistics(self) -> PagerStatistics:
        return PagerStatistics(
            in_bytes=self._bytes["in"],
            out_bytes=self._bytes["out"],
            in_s=self._seconds["in"],
            out_s=self._seconds["out"],
            waited_s=self._waited_s,
            steps=self._n_steps,
            step_s=self._step_s,
        )

    def close(self) -> None:
        """Drop what has not begun; the lanes are the caller's to close."""
        for waiting in self._queue:
            waiting.future.cancel()
        self._queue.clear()

    def _advance(self) -> None:
        self._load_next()
        while self._queue and self._is_ready(self._queue[0]):
            self._start(self._queue.popleft())
            self._load_next()

    def _is_ready(self, waiting: _Waiting) -> bool:
        microbatch = waiting.step.microbatch
        if self._computing.total() >= _MOST_GIVEN:
            return False
        if self._computing[microbatch] or microbatch in self._loading:
            return False
        is_here = self._model.frames.frame(microbatch) is not None
        return is_here and not self._model.lacks(waiting.needs)

    def _start(self, waiting: _Waiting) -> None:
        microbatch, frames = waiting.step.microbatch, self._model.frames
        if not self._computing.total():
            self._waited_s += self._clock.time() - max(waiting.since, self._free_since)
        frames.begin(microbatch)
        frames.pin(microbatch)
        self._computing[microbatch] += 1
        self._rows[microbatch] = tuple(_extended(waiting.step))
        future = self._compute.submit(waiting.work, cost_s=waiting.cost_s)
        future.add_done_callback(partial(self._computed, waiting))

    def _computed(self, waiting: _Waiting, done: asyncio.Future[Done[Any]]) -> None:
        microbatch = waiting.step.microbatch
        self._computing[microbatch] -= 1
        self._model.frames.unpin(microbatch)
        self._free_since = self._clock.time()
        if done.cancelled():
            waiting.future.cancel()
            return
        _hand_on(done, waiting.future)
        if done.exception() is not None:
            return
        if not waiting.step.chunks:
            self._n_steps += 1
            self._step_s += done.result().busy_s
        owed = self._model.owes(_extended(waiting.step))
        if owed:
            self._copy("out", microbatch, owed)
        self._advance()

    def _load_next(self) -> None:
        """Bring in what the next step needs; if it is not there yet, what it will most likely need.

        No farther ahead: a frame is of more use for what it holds than for what comes after that.
        """
        if self._computing.total() >= _MOST_GIVEN:
            return
        if self._queue:
            self._load(self._queue[0].step.microbatch, self._queue[0].needs)
            return
        frames = self._model.frames
        for microbatch in frames.upcoming()[:1]:
            needs = self._model.lengths(self._rows.get(microbatch, ()))
            self._load(microbatch, needs, after=frames.turn(microbatch))

    def _load(self, microbatch: int, needs: Mapping[int, int], *, after: int = -1) -> None:
        """Give the microbatch a frame, if one can be given up, and copy in what it lacks there."""
        if self._computing[microbatch] or microbatch in self._loading:
            return
        if not self._model.claim(microbatch, after=after):
            return
        lacks = self._model.lacks(needs)
        if lacks:
            self._loading.add(microbatch)
            self._copy("in", microbatch, lacks)

    def _copy(self, direction: str, microbatch: int, ranges: tuple[Range, ...]) -> None:
        nbytes = sum(each.n_tokens for each in ranges) * self._entry_bytes
        is_in = direction == "in"
        lane = self._lane_in if is_in else self._lane_out
        copy = self._model.swap_in if is_in else self._model.swap_out
        self._model.frames.pin(microbatch)
        cost_s = nbytes / self._bandwidth if self._bandwidth else 0.0
        future = lane.submit(partial(copy, ranges), cost_s=cost_s)
        future.add_done_callback(partial(self._copied, direction, microbatch, nbytes))

    def _copied(
        self, direction: str, microbatch: int, nbytes: int, future: asyncio.Future[Done[None]]
    ) -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is not None:
            self._on_failure(error)
            return
        done = future.result()
        self._model.frames.unpin(microbatch)
        if direction == "in":
            self._loading.discard(microbatch)
        self._bytes[direction] += nbytes
        self._seconds[direction] += done.busy_s
        self._on_copied(
            Copied(
                direction=direction,
                microbatch=microbatch,
                began=done.began,
                busy_s=done.busy_s,
                nbytes=nbytes,
            )
        )
        self._advance()


def _needs(step: Step) -> dict[int, int]:
    """Slot -> the entries that must be there before the step; what it makes itself is not."""
    needs = {item.slot: item.position for item in step.decodes}
    for chunk in step.chunks:
        needs.setdefault(chunk.slot, chunk.start)
    made = {fork.target for fork in step.forks} | {item.slot for item in step.opens}
    return {slot: length for slot, length in needs.items() if length and slot not in made}


def _extended(step: Step) -> list[int]:
    """The slots whose logs a step extends."""
    return list(
        dict.fromkeys([item.slot for item in step.decodes] + [item.slot for item in step.chunks])
    )


def _hand_on(done: asyncio.Future[Done[Any]], future: asyncio.Future[Done[Any]]) -> None:
    if future.done():
        return
    error = done.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(done.result())
