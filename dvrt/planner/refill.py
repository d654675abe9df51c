"""How fast rows that end one by one are refilled: the steady state of unequal outputs.

Equation 3 has a microbatch's prompts come all at once, and pays their bubble once for all of its
rows. Rows of unequal outputs end one by one, each is refilled at once, and each prompt holds up
whatever is in the pipeline with it: a lap of the microbatches is as slow as its slowest step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 40
CHUNKS_PER_STEP = 2
"""Prompt chunks that a step of the runtime may carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """One pipeline for prompts and tokens, with as many microbatches as stages.

    A request takes ``decodes`` token steps and ``chunks`` prompt chunks; ``prompts_s`` are what
    prompts take a stage, each standing for as many. ``token_s`` is a stage's token step with so
    many rows of a microbatch.
    """

    stages: int
    rows: int
    decodes: float
    chunks: float
    prompts_s: tuple[float, ...]
    token_s: Callable[[float], float]

    @property
    def prompt_s(self) -> float:
        return math.fsum(self.prompts_s) / len(self.prompts_s)

    @property
    def prompt_steps(self) -> float:
        """Steps that one prompt takes when no other is in its microbatch."""
        return max(1.0, self.chunks / CHUNKS_PER_STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """``request_s`` is seconds a request. A lap takes ``stages`` times ``step_s``, of which
    ``stall_s`` is what prompts add to a token step. A stage is idle for ``bubble_share`` of it.
    """

    request_s: float
    step_s: float
    stall_s: float
    bubble_share: float


def refilled(line: Pipeline) -> Refill:
    """The steady state under requests that never leave a row empty.

    Of the steps of a microbatch a share q carries prompts, which add a to it. A prompt of several
    steps is there for as many laps, so 1 - (1 - q)^D of all laps have one in some microbatch, and
    wait a for it. One of a single step holds up the D steps of a lap, and the next such step begins
    the next lap: D q a / (1 + (D - 1) q) a step.
    """
    per_step = _requests_per_step(line)
    share = _prompt_share(line, per_step)
    token_s = line.token_s(max(1.0, per_step * line.decodes))
    work_s = per_step * line.prompt_s
    if line.prompt_steps > 1:
        stall_s = (1 - (1 - share) ** line.stages) * work_s / share
    else:
        stall_s = _torn_s(line, share, per_step)
    step_s = token_s + stall_s
    return Refill(
        request_s=step_s / per_step,
        step_s=step_s,
        stall_s=stall_s,
        bubble_share=1 - (token_s + work_s) / step_s,
    )


def _torn_s(line: Pipeline, share: float, per_step: float) -> float:
    """Of unequal prompts only the longest set the pace, so many that the laps are the slowest."""
    longest = sorted(line.prompts_s, reverse=True)
    others, most_s, taken_s = line.stages - 1, 0.0, 0.0
    for count, prompt_s in enumerate(longest, start=1):
        taken_s += prompt_s / len(longest)
        held_s = per_step * (line.prompt_s + others * taken_s)
        most_s = max(most_s, held_s / (1 + others * share * count / len(longest)))
    return most_s


def _prompt_share(line: Pipeline, per_step: float) -> float:
    """Of the steps of a microbatch those that carry prompts: whole ones come as they come, chunks
    follow each other."""
    if line.chunks <= 1:
        return 1 - math.exp(-per_step)
    return min(1.0, per_step * line.prompt_steps)


def _requests_per_step(line: Pipeline) -> float:
    """A row is taken for its prompt's steps, the wait for others' prompts, and its token steps.

    The wait is that of a single server with equal jobs; the rows bound it, so their number is what
    settles how many requests come.
    """
    steps = line.prompt_steps
    low, high = 0.0, CHUNKS_PER_STEP / line.chunks
    for _ in range(ROUNDS):
        per_step = (low + high) / 2
        busy = per_step * line.chunks / CHUNKS_PER_STEP
        taken = per_step * (line.decodes + steps + busy * steps / (2 * (1 - busy)))
        low, high = (per_step, high) if taken < line.rows else (low, per_step)
    return low


def held_rows(token_s: float, *, stages: int, rows: int, decodes: float, held_s: float) -> float:
    """Seconds a request of a pipeline for tokens only, ``rows`` of them in each microbatch.

    A row is set aside ``held_s`` before its first step, while its prompt is computed and comes.
    """
    return (decodes * stages * token_s + held_s) / (rows * stages)
