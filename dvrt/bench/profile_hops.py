"""What a hop takes while every stage has something to do, from a launch's trace.

A hop is seen where the one that it goes to has nothing else to compute: from the end of a step at
one stage to its beginning at the next, and, two at once, from its end at the last stage over the
controller to the beginning of the microbatch's next step at the first.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from dvrt.bench.stage_spans import StageSpan

NO_HOP = 10.0
"""What takes so many times the median is something else: a worker was lost, the machine slept."""


def hop_s(spans: Sequence[StageSpan], *, n_stages: int, rows: int) -> float:
    """The mean of a round's, by steps that decode ``rows`` and nothing else. A way on which no
    such step was seen is left out; 0 where that is every way."""
    stages = [_in_order(spans, stage) for stage in range(n_stages)]
    ways = [(1, _ways(near, far)) for near, far in pairwise(stages)]
    ways.append((2, _returns(stages[-1], stages[0])))
    sum_s, n_hops = 0.0, 0
    for hops, found in ways:
        gaps_s = [gap_s for step, gap_s in found if step.rows == rows and not step.chunks]
        if gaps_s:
            sum_s, n_hops = sum_s + _mean(gaps_s), n_hops + hops
    return sum_s / n_hops if n_hops else 0.0


def _in_order(spans: Sequence[StageSpan], stage: int) -> list[StageSpan]:
    return sorted((each for each in spans if each.stage == stage), key=lambda each: each.began_s)


def _ways(near: Sequence[StageSpan], far: Sequence[StageSpan]) -> Iterator[tuple[StageSpan, float]]:
    """Steps that found the next stage free, and what their way to it took."""
    ends = {each.step: each.end_s for each in near}
    for before, span in pairwise(far):
        left_s = ends.get(span.step)
        if left_s is not None and before.end_s <= left_s:
            yield span, span.began_s - left_s


def _returns(
    last: Sequence[StageSpan], first: Sequence[StageSpan]
) -> Iterator[tuple[StageSpan, float]]:
    """Steps that follow another one of their microbatch and found the first stage free."""
    ends = {each.step: each.end_s for each in last}
    latest: dict[int, StageSpan] = {}
    for before, span in pairwise(first):
        latest[before.microbatch] = before
        former = latest.get(span.microbatch)
        if former is None or former.rows != span.rows or former.step not in ends:
            continue
        left_s = ends[former.step]
        if before.end_s <= left_s:
            yield span, span.began_s - left_s


def _mean(gaps_s: Sequence[float]) -> float:
    most_s = NO_HOP * statistics.median(gaps_s)
    return statistics.fmean(each for each in gaps_s if each <= most_s)
