"""Swapping at one stage: the runtime's pager in virtual time, with its frames and two lanes.

Its decisions are those of ``dvrt.stages.pager``: which microbatch is brought in, when, and whose
frame it gets.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

from dvrt.models.swap_frames import Frames
from dvrt.simulator.deployment import LinkFigures

MOST_GIVEN = 2
"""Steps that compute has at a time, as in the runtime."""


class _What(IntEnum):
    """What ends, or is to be looked at once more, at some moment."""

    COMPUTED = 0
    OUT = 1
    IN = 2
    LOOK = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedStep:
    """A step of one microbatch: its logs' bytes before it, those that it adds, and its compute."""

    microbatch: int
    held_bytes: float
    new_bytes: float
    cost_s: float


class Paging:
    """``n_frames`` microbatches are on the device, the others in host memory.

    A step computes once its logs are there. While one computes, the next one's are copied in: those
    of the step that waits, else of the microbatch whose turn is next. A frame is given up when its
    step is over and what that added is out; only new entries are copied out.
    """

    __slots__ = (
        "_computing",
        "_events",
        "_frames",
        "_free_s",
        "_here",
        "_in_free_s",
        "_links",
        "_loading",
        "_n_frames",
        "_n_microbatches",
        "_now",
        "_out_free_s",
        "_rows",
        "_waiting",
        "wait_s",
    )

    def __init__(self, n_frames: int, n_microbatches: int, links: LinkFigures) -> None:
        self._n_frames, self._n_microbatches = n_frames, n_microbatches
        self._links = links
        self.wait_s = 0.0
        self.clear(0.0)

    def clear(self, now: float) -> None:
        """Nothing is on the device any more, and no copy is under way."""
        self._frames = Frames(self._n_frames, self._n_microbatches)
        self._events: list[tuple[float, _What, int, float]] = []
        self._computing: Counter[int] = Counter()
        self._loading: set[int] = set()
        self._here: set[int] = set()
        self._rows: dict[int, float] = {}
        self._waiting: PagedStep | None = None
        self._now = self._free_s = self._in_free_s = self._out_free_s = now

    def start(self, step: PagedStep, begin_s: float, free_s: float) -> float:
        """When a step computes that comes at ``begin_s``, after all that came before it.

        ``free_s`` is when the stage is done with those.
        """
        while self._events and self._events[0][0] < begin_s:
            self._happen()
        self._now = max(self._now, begin_s)
        self._free_s = max(self._free_s, free_s)
        self._waiting = step
        self._load_next()
        while not self._is_ready(step):
            self._happen()
        self._waiting = None
        return self._begin(step, begin_s)

    def _begin(self, step: PagedStep, begin_s: float) -> float:
        microbatch, frames = step.microbatch, self._frames
        start_s = max(self._now, self._free_s)
        self.wait_s += start_s - max(begin_s, self._free_s)
        frames.begin(microbatch)
        frames.pin(microbatch)
        self._computing[microbatch] += 1
        self._rows[microbatch] = step.held_bytes + step.new_bytes
        self._free_s = start_s + step.cost_s
        self._put(self._free_s, _What.COMPUTED, microbatch, step.new_bytes)
        self._put(self._now, _What.LOOK, microbatch, 0.0)
        return start_s

    def _is_ready(self, step: PagedStep) -> bool:
        microbatch = step.microbatch
        if self._computing.total() >= MOST_GIVEN or self._computing[microbatch]:
            return False
        return microbatch in self._here

    def _put(self, at_s: float, what: _What, microbatch: int, size_bytes: float) -> None:
        heapq.heappush(self._events, (at_s, what, microbatch, size_bytes))

    def _happen(self) -> None:
        """The next moment, and what follows from it."""
        at_s, what, microbatch, new_bytes = heapq.heappop(self._events)
        self._now = max(self._now, at_s)
        if what is not _What.LOOK:
            self._frames.unpin(microbatch)
        if what is _What.COMPUTED:
            self._computing[microbatch] -= 1
            if new_bytes:
                self._copy_out(microbatch, new_bytes)
        elif what is _What.IN:
            self._loading.discard(microbatch)
            self._here.add(microbatch)
        self._load_next()

    def _copy_out(self, microbatch: int, size_bytes: float) -> None:
        self._frames.pin(microbatch)
        begin_s = max(self._now, self._out_free_s)
        self._out_free_s = begin_s + size_bytes / self._links.device_to_host
        self._put(self._out_free_s, _What.OUT, microbatch, 0.0)

    def _load_next(self) -> None:
        if self._computing.total() >= MOST_GIVEN:
            return
        if self._waiting is not None:
            self._load(self._waiting.microbatch, self._waiting.held_bytes, after=-1)
            return
        frames = self._frames
        for microbatch in frames.upcoming()[:1]:
            self._load(microbatch, self._rows[microbatch], after=frames.turn(microbatch))

    def _load(self, microbatch: int, size_bytes: float, *, after: int) -> None:
        """Give the microbatch a frame, if one can be given up, and copy in what it lacks there."""
        frames = self._frames
        if self._computing[microbatch] or microbatch in self._loading:
            return
        if frames.frame(microbatch) is None:
            frame = frames.victim(after=after)
            if frame is None:
                return
            old = frames.held(frame)
            if old is not None:
                self._here.discard(old)
            frames.give(frame, microbatch)
        if microbatch in self._here:
            return
        if not size_bytes:
            self._here.add(microbatch)
            return
        self._loading.add(microbatch)
        frames.pin(microbatch)
        self._in_free_s = max(self._now, self._in_free_s) + size_bytes / self._links.host_to_device
        self._put(self._in_free_s, _What.IN, microbatch, 0.0)


def frames_of(device_slots: int | None, n_microbatches: int) -> int:
    """How many frames a stage swaps with; 0 where all microbatches are on the device."""
    if device_slots is None or device_slots >= n_microbatches:
        return 0
    return device_slots
