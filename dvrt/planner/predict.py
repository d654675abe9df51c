"""What a deployment of the runtime should reach, to be held beside what it was measured to reach.

Pure formulas: the paper's equations with the runtime's ways. A prompt gives the first token, so N
tokens take N - 1 token steps; prompts go in chunks that ride on token steps, so they tear no
bubble; stages are equally long, and what bounds the slowest bounds all.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dvrt.errors import ConfigError
from dvrt.planner import equations
from dvrt.planner.profile import Profile

CHUNK_TOKENS = 64
Lengths = Sequence[tuple[int, int]]
"""(tokens of the prompt, tokens generated)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Step times of one stage: ``prompt_s(rows, length)`` and ``token_s(rows, context)``.

    ``kv_bytes`` is what one token's entry takes in the stage's layers.
    """

    prompt_s: Callable[[int, float], float]
    token_s: Callable[[int, float], float]
    kv_bytes: float = 0.0


def profile_times(profile: Profile, stages: int) -> StageTimes:
    """The times of the slowest of ``stages`` stages. ConfigError for more stages than layers."""
    if not 1 <= stages <= profile.model.layers:
        raise ConfigError(f"{stages} stages of {profile.model.layers} layers")
    layers = math.ceil(profile.model.layers / stages)
    return StageTimes(
        prompt_s=lambda rows, length: profile.stage_prompt_s(layers, rows, length),
        token_s=lambda rows, context: profile.stage_token_s(layers, rows, context),
        kv_bytes=layers * profile.model.kv_bytes_per_token,
    )


def fixed_times(
    step_s: float, prompt_s: Callable[[int, float], float] | None = None, *, kv_bytes: float = 0.0
) -> StageTimes:
    """The null device's: every step takes ``step_s``, so chunks that ride on token steps are free.

    ``prompt_s`` is the time of prompts that have a pipeline of their own.
    """
    if not (math.isfinite(step_s) and step_s >= 0):
        raise ConfigError(f"step_s is {step_s}; a time of at least 0")
    return StageTimes(
        prompt_s=prompt_s or (lambda rows, length: 0.0),
        token_s=lambda rows, context: step_s,
        kv_bytes=kv_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Shape of a deployment. Rates are bytes a second into a stage; infinite ones cost nothing.

    With ``prompt_stages`` prompts have a pipeline of their own, ``prompt_batch`` rows at a time
    (0: ``batch_size``). ``device_slots`` microbatches are on the device, 0 for all of them;
    ``hop_s`` is a message from stage to stage. A step of the shared pipeline carries at most
    ``prompt_tokens_per_step`` of prompts beside its tokens; ``whole_prompts`` is the paper's
    pipeline, where they tear the bubble of Equation 3 instead.
    """

    stages: int
    microbatches: int
    batch_size: int
    prompt_stages: int = 0
    prompt_batch: int = 0
    device_slots: int = 0
    swap_bandwidth: float = math.inf
    replicas: int = 0
    link: float = math.inf
    hop_s: float = 0.0
    prompt_tokens_per_step: int = 2 * CHUNK_TOKENS
    whole_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("stages", "microbatches", "batch_size", "prompt_tokens_per_step"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1")
        for name in ("prompt_stages", "prompt_batch", "device_slots", "replicas", "hop_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 0")
        for name in ("swap_bandwidth", "link"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; above 0 bytes a second")

    def prompt_steps(self, prompt: int) -> int:
        """Steps in which a row of the shared pipeline gets its prompt and no token."""
        if self.whole_prompts or self.prompt_stages:
            return 0
        return math.ceil(prompt / self.prompt_tokens_per_step)

    @property
    def swaps(self) -> bool:
        return 0 < self.device_slots < self.microbatches


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The steady state under equal requests that never leave a row empty; seconds.

    ``prompt_step_s`` and ``token_step_s`` are Y and t of a microbatch on one stage, waits for
    swapping and replicas in t. ``lap_s`` is the time between two tokens of a row, ``first_s`` from
    a prompt's first step to its first token, ``total_s`` to its last one.
    """

    prompt_step_s: float
    token_step_s: float
    lap_s: float
    first_s: float
    total_s: float
    busy_share: float
    requests_per_s: float
    tokens_per_s: float


def predict(
    times: StageTimes,
    shape: Deployment,
    *,
    prompt: int,
    output: int,
    prompt_times: StageTimes | None = None,
) -> Prediction:
    """The steady state for requests of ``prompt`` and ``output`` tokens.

    ``prompt_times`` are the prompt pipeline's, whose stages may be longer; ``times`` without them.
    Raises ConfigError for lengths below 1.
    """
    if prompt < 1 or output < 1:
        raise ConfigError(f"lengths {(prompt, output)}: both at least 1")
    apart = shape.prompt_stages > 0
    rows = shape.prompt_batch or shape.batch_size if apart else shape.batch_size
    prompt_s = (prompt_times or times).prompt_s(rows, prompt)
    token_s = _token_s(times, shape, prompt, output)
    steps = output - 1 + shape.prompt_steps(prompt)
    work_s = steps * token_s if apart else _shared_s(shape, prompt_s, token_s, steps)
    work_s = max(work_s, _received_s(times, shape, prompt, output))
    lap_s, busy = _with_gaps(shape, work_s, steps)
    inverse_s = lap_s / shape.microbatches / shape.batch_size
    first_s = (shape.prompt_stages or shape.stages) * prompt_s
    if apart:
        streamed_s = _streamed_s(times, shape, prompt, rows)
        inverse_s = max(inverse_s, max(prompt_s, streamed_s) / rows)
        first_s += streamed_s
    per_token_s = lap_s / max(1, steps)
    return Prediction(
        prompt_step_s=prompt_s,
        token_step_s=token_s,
        lap_s=per_token_s,
        first_s=first_s,
        total_s=first_s + (output - 1) * per_token_s,
        busy_share=busy,
        requests_per_s=1 / inverse_s if inverse_s else math.inf,
        tokens_per_s=output / inverse_s if inverse_s else math.inf,
    )


def _token_s(times: StageTimes, shape: Deployment, prompt: int, output: int) -> float:
    """The mean of a microbatch's token steps on a stage: of Appendix G's max where it swaps."""
    contexts = range(prompt + 1, prompt + max(2, output))
    steps = [times.token_s(shape.batch_size, context) for context in contexts]
    if shape.swaps:
        batch, kv_bytes = shape.batch_size, times.kv_bytes
        for i, context in enumerate(contexts):
            transfer_s = equations.transfer_time(
                context, batch=batch, token_kv=kv_bytes, bandwidth=shape.swap_bandwidth
            )
            steps[i] = max(steps[i], transfer_s)
    return math.fsum(steps) / len(steps)


def _shared_s(shape: Deployment, prompt_s: float, token_s: float, steps: int) -> float:
    """One microbatch's work on a stage that computes its prompts, too."""
    if not shape.whole_prompts:
        return prompt_s + steps * token_s
    return equations.colocated_inverse_throughput(
        shape.stages, prompt_time=prompt_s, token_time=token_s, tokens=steps
    )


def _received_s(times: StageTimes, shape: Deployment, prompt: int, output: int) -> float:
    """What a stage's link takes for one microbatch: the prompts' KV if apart, and replicas."""
    entries = shape.replicas * (prompt + output - 1) + (prompt if shape.prompt_stages else 0)
    return entries * shape.batch_size * times.kv_bytes / shape.link


def _streamed_s(times: StageTimes, shape: Deployment, prompt: int, rows: int) -> float:
    """What the link of one prompt stage takes for its layers' KV of one prompt batch."""
    whole = times.kv_bytes * shape.stages
    return rows * prompt * whole / shape.prompt_stages / shape.link


def _with_gaps(shape: Deployment, work_s: float, steps: int) -> tuple[float, float]:
    """Seconds in which every microbatch does its work once, and the share a stage is busy of them.

    That is as long as all microbatches take on one stage, or one on all stages and its hops back
    to the first.
    """
    stage_s = shape.microbatches * work_s
    alone_s = shape.stages * work_s + steps * (shape.stages + 1) * shape.hop_s
    lap_s = max(stage_s, alone_s)
    return lap_s, stage_s / lap_s if lap_s else 1.0


def predict_burst(times: StageTimes, shape: Deployment, lengths: Lengths) -> float:
    """Seconds for requests that are all there at once, in this order, in one shared pipeline.

    Rows are refilled at every step; a step takes as long as one of a full batch, whatever rows it
    has. The end is counted as it is: microbatches run until their last row is done. Raises
    ConfigError for no requests.
    """
    if not lengths or min(min(pair) for pair in lengths) < 1:
        raise ConfigError("a burst needs requests, each of at least one token in and out")
    prompts_s = math.fsum(times.prompt_s(1, prompt) for prompt, _ in lengths)
    total = math.fsum(output - 1 for _, output in lengths)
    spans = math.fsum((output - 1) * (prompt + output / 2) for prompt, output in lengths)
    token_s = times.token_s(shape.batch_size, spans / total) if total else 0.0
    seconds, done = prompts_s, 0
    ends = sorted(_last_laps(shape, lengths))
    for position, end in enumerate(ends):
        running = len(ends) - position
        alone_s = shape.stages * token_s + (shape.stages + 1) * shape.hop_s
        seconds += (end - done) * max(running * token_s, alone_s)
        done = end
    return seconds


def _last_laps(shape: Deployment, lengths: Lengths) -> list[int]:
    """Of each microbatch that is used the lap in which its last row ends.

    Rows that are filled at the start wait for the prompts before them in their microbatch.
    """
    wanted = max(shape.stages, math.ceil(len(lengths) / shape.batch_size))
    used = min(shape.microbatches, wanted, len(lengths))
    ends = [0] * used
    filled = [0] * used
    rows: list[tuple[int, int]] = []
    for index, (prompt, output) in enumerate(lengths):
        if index < used * shape.batch_size:
            microbatch = index % used
            filled[microbatch] += CHUNK_TOKENS * math.ceil(prompt / CHUNK_TOKENS)
            begin = filled[microbatch] // shape.prompt_tokens_per_step
        else:
            free, microbatch = heapq.heappop(rows)
            begin = free + shape.prompt_steps(prompt)
        end = begin + output - 1
        ends[microbatch] = max(ends[microbatch], end)
        heapq.heappush(rows, (end, microbatch))
    return ends


def streamed_step_s(compute_s: float, transfer_s: float, *, overlaps: bool) -> float:
    """A step whose new entries are streamed away: behind the next step's compute, or before it.

    What streaming takes of the processor is not in it.
    """
    return max(compute_s, transfer_s) if overlaps else compute_s + transfer_s


def prediction_error(predicted: float, measured: float) -> float:
    """By how much of the measured figure the prediction is off; positive when it is too high."""
    return predicted / measured - 1
