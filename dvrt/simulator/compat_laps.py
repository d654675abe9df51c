"""The public simulators' event loop, many visits at a time, with the same bits in the result.

All microbatches in flight pass the stages in step: in round r each visits stage r mod D, in the
order of their slots, so D rounds make a lap and X(r, i) = max(X(r-1, i), X(r, i-1)) + w(i). When
nobody waits for anybody a slot just adds the token time D times a lap; that state lasts until
somebody finishes, and is crossed in one jump (see ``_is_free_running`` for why it lasts).
"""

from __future__ import annotations

import math

from dvrt.simulator.compat_steps import PipelineOutcome
from dvrt.simulator.compat_work import PipelineWork

_FEW = 24


def add_repeatedly(value: float, step: float, times: int) -> float:
    """``value + step + step + ...``: the float that so many single additions give, exactly.

    Within one power of two every addition after the first adds the same multiple of the spacing
    (a tie rounds to even, after which all ties round alike), so whole stretches are one product.
    Both numbers must be finite and not negative.
    """
    while times > _FEW:
        once = value + step
        twice = once + step
        value = twice + step
        times -= 3
        advance = value - twice
        if advance == 0.0:
            return value
        ceiling = math.ldexp(1.0, math.frexp(value)[1])
        jumps = min(times, int((ceiling - value) / advance) - 2)
        if jumps > 0 and once * 2 >= ceiling:
            value += jumps * advance
            times -= jumps
    for _ in range(times):
        value += step
    return value


def run_laps(work: PipelineWork) -> PipelineOutcome:
    """Run the pipeline to the end; equal to ``compat_steps.run_steps`` in every bit."""
    return _Laps(work).run()


class _Laps:
    """Slots in order; ``ready_us`` is the end of a slot's last visit, or its earliest start."""

    def __init__(self, work: PipelineWork) -> None:
        self._work = work
        first = range(work.stages)
        self._microbatch = list(first)
        self._ready_us = [work.entries_us[b] for b in first]
        self._remaining = [work.lengths[b] for b in first]
        self._in_prompt = [work.prompt_us is not None for _ in first]
        self._free_us = [0.0] * work.stages
        self._next = work.stages
        self._ends_us = [0.0] * len(work.lengths)
        self._early_stops = 0

    def run(self) -> PipelineOutcome:
        while self._microbatch:
            if True in self._in_prompt or not self._is_free_running():
                self._lap()
                laps = 1
            else:
                laps = min(self._remaining)
                self._jump(laps)
            self._close_lap(laps)
        return PipelineOutcome(self._ends_us, self._early_stops)

    def _is_free_running(self) -> bool:
        """Whether no slot waits for a stage, in this lap and in all until one finishes.

        With f(n, x) for n additions of t to x, which grows with x: slot i never waits for slot i-1
        if ready[i] >= f(1, ready[i-1]); the first slot never waits for the last one's previous lap
        if f(s, ready[0]) >= free[s] now, and f(D-1, ready[0]) >= ready[-1] later. A lap replaces
        each ready by f(D, ready), which keeps the first and third; the third implies the second.
        """
        token_us = self._work.token_us
        ready = self._ready_us
        for i in range(1, len(ready)):
            if ready[i] < ready[i - 1] + token_us:
                return False
        first = ready[0]
        for free in self._free_us:
            if first < free:
                return False
            last, first = first, first + token_us
        return last >= ready[-1]

    def _lap(self) -> None:
        work = self._work
        prompt_us = work.prompt_us or 0.0
        costs = [prompt_us if is_prompt else work.token_us for is_prompt in self._in_prompt]
        ready = self._ready_us
        slots = range(len(ready))
        for stage, free in enumerate(self._free_us):
            for i in slots:
                start = ready[i]
                if start > free:
                    free = start
                free += costs[i]
                ready[i] = free
            self._free_us[stage] = free

    def _jump(self, laps: int) -> None:
        token_us, stages = self._work.token_us, self._work.stages
        times = (laps - 1) * stages
        ready = self._ready_us
        old = None
        for i, at in enumerate(ready):
            if old is not None and at == old + token_us:
                ready[i] = ready[i - 1] + token_us
            else:
                ready[i] = add_repeatedly(at, token_us, times)
            old = at
        last = ready[-1]
        for stage in range(stages):
            last += token_us
            self._free_us[stage] = last
        for i, at in enumerate(ready):
            for _ in range(stages):
                at += token_us
            ready[i] = at

    def _close_lap(self, laps: int) -> None:
        """Count the tokens of the laps just run; let the finished go and the waiting enter."""
        remaining, in_prompt = self._remaining, self._in_prompt
        before = remaining.copy()
        finished = []
        for i, is_prompt in enumerate(in_prompt):
            if is_prompt:
                in_prompt[i] = False
                continue
            remaining[i] -= laps
            before[i] -= laps - 1
            if not remaining[i]:
                finished.append(i)
        for i in finished:
            self._finish(i, before)
        if finished and 0 in remaining:
            self._drop_empty_slots()

    def _finish(self, slot: int, before: list[int]) -> None:
        work = self._work
        self._ends_us[self._microbatch[slot]] = self._ready_us[slot]
        waiting = max(before[slot + 1 :], default=0)
        self._early_stops += max(waiting, max(self._remaining[:slot], default=0)) > 2
        if self._next < len(work.lengths):
            self._microbatch[slot] = self._next
            self._ready_us[slot] = work.entries_us[self._next]
            self._remaining[slot] = work.lengths[self._next]
            self._in_prompt[slot] = work.prompt_us is not None
            self._next += 1

    def _drop_empty_slots(self) -> None:
        kept = [i for i, left in enumerate(self._remaining) if left]
        self._microbatch = [self._microbatch[i] for i in kept]
        self._ready_us = [self._ready_us[i] for i in kept]
        self._in_prompt = [self._in_prompt[i] for i in kept]
        self._remaining = [self._remaining[i] for i in kept]
