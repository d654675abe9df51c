"""How fast steps were while requests were served, beside what the simulator takes them for.

A shared machine is a third faster in one minute than in the next. What a simulator makes of steps
is one question, and how long they take another; the pace of the very run answers the first alone.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dvrt.bench.stage_spans import StageSpan, read_spans
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.deployment import Deployment, LineFigures, StageFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of a stage's steps over those that it was thought to take, on the mean."""

    token: float = 1.0
    prompt: float = 1.0


def paces(deployment: Deployment, requests: Sequence[Arrival], trace: Path) -> list[list[Pace]]:
    """Of each stage of each pipeline, from the trace of a launch that served these requests."""
    found = []
    for number, (_, line) in enumerate(deployment.lines):
        spans: dict[int, list[StageSpan]] = defaultdict(list)
        for span in read_spans(trace, pipeline=number):
            spans[span.stage].append(span)
        found.append(
            [
                _pace(spans[stage], figures, requests, line.chunk_tokens)
                for stage, figures in enumerate(line.stages)
            ]
        )
    return found


def at_pace(deployment: Deployment, found: Sequence[Sequence[Pace]]) -> Deployment:
    """The deployment with steps as long as they were."""
    *prompts, tokens = [
        _line_at_pace(line, each) for (_, line), each in zip(deployment.lines, found, strict=True)
    ]
    return replace(deployment, tokens=tokens, prompts=prompts[0] if prompts else None)


def _line_at_pace(line: LineFigures, found: Sequence[Pace]) -> LineFigures:
    stages = [
        replace(stage, timing=stage.timing.scaled(token=pace.token, prompt=pace.prompt))
        for stage, pace in zip(line.stages, found, strict=True)
    ]
    return replace(line, stages=tuple(stages))


def _pace(
    spans: Sequence[StageSpan],
    figures: StageFigures,
    requests: Sequence[Arrival],
    chunk_tokens: int,
) -> Pace:
    """Which context a step read is not in a trace, nor which chunks drew a first token: they count
    as the mean of all requests."""
    timing = figures.timing
    context = round(statistics.fmean(_contexts(requests)))
    pieces = list(_chunks(requests, chunk_tokens))
    chunk_s = statistics.fmean(timing.chunk_step_s(start, n_tokens) for start, n_tokens in pieces)
    draw_s = figures.draw_s * len(requests) / len(pieces)
    decodes = [span for span in spans if span.rows and not span.chunks]
    chunks = [span for span in spans if span.chunks]
    token = _ratio(
        sum(span.seconds for span in decodes),
        sum(timing.decode_step_s([context] * span.rows) for span in decodes),
    )
    beside_s = sum(
        token * timing.decode_step_s([context] * span.rows) + span.chunks * draw_s
        for span in chunks
    )
    prompt = _ratio(
        sum(span.seconds for span in chunks) - beside_s,
        sum(span.chunks * chunk_s for span in chunks),
    )
    return Pace(token=token, prompt=prompt)


def _contexts(requests: Sequence[Arrival]) -> Iterator[float]:
    """The positions that each token of each request reads, on the mean of the request."""
    for each in requests:
        yield from [each.prompt + each.output / 2] * each.output


def _chunks(requests: Sequence[Arrival], chunk_tokens: int) -> Iterator[tuple[int, int]]:
    """Start and size of each chunk of the prompts."""
    for each in requests:
        for start in range(0, each.prompt, chunk_tokens):
            yield start, min(chunk_tokens, each.prompt - start)


def _ratio(taken_s: float, thought_s: float) -> float:
    return taken_s / thought_s if thought_s > 0 and taken_s > 0 else 1.0
