"""Latency percentiles of a split under its workload: an estimate from means and one queue.

Waiting is that of a single server with the split's time per request (Pollaczek and Khinchine's
mean, an exponential tail); everything else comes from the stage times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dvrt.planner.cost import Cost, CostModel
from dvrt.planner.split import CHUNKED

PAIRS = 64
WAITS = 16
PERCENTILES = (50, 95, 99)
Percentiles = tuple[float, float, float]
_NEVER = (math.inf, math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """50th, 95th and 99th percentiles in seconds; infinite when the requests outrun the split.

    ``normalized_s`` is end-to-end time over generated tokens, the paper's measure. ``utilisation``
    is 1 for work that is all there at once; its wait in the queue is not counted then.
    """

    utilisation: float
    ttft_s: Percentiles
    tpot_s: Percentiles
    normalized_s: Percentiles


def predict_latency(model: CostModel, cost: Cost) -> Latency:
    """Percentiles over the workload's lengths and the wait in the queue."""
    rate = model.workload.rate_per_s
    utilisation = 1.0 if rate is None else rate / cost.requests_per_s
    if rate is not None and utilisation >= 1:
        return Latency(utilisation=utilisation, ttft_s=_NEVER, tpot_s=_NEVER, normalized_s=_NEVER)
    waits = [0.0] if rate is None else _waits(model, cost, utilisation)
    ttft, tpot, normalized = [], [], []
    request = _RequestTimes(model, cost, utilisation)
    for prompt, output in model.workload.pairs(PAIRS):
        first_s = request.first_s(prompt)
        decode_s = request.decode_s(prompt, output)
        tpot.append(decode_s / output)
        ttft += [wait_s + first_s for wait_s in waits]
        normalized += [(wait_s + first_s + decode_s) / output for wait_s in waits]
    return Latency(
        utilisation=utilisation,
        ttft_s=_percentiles(ttft),
        tpot_s=_percentiles(tpot),
        normalized_s=_percentiles(normalized),
    )


class _RequestTimes:
    """One request's way through a split in which as many rows share a step as the load fills."""

    def __init__(self, model: CostModel, cost: Cost, utilisation: float) -> None:
        self._model = model
        self._split = split = cost.split
        self._times = cost.times
        self._stall_s = cost.stall_s
        self._utilisation = utilisation
        self._layers = math.ceil(model.profile.model.layers / split.stages)
        self._rows = _filled(split.batch, utilisation)
        self._token_s = model.profile.stage_token_s(
            self._layers, self._rows, model.workload.mean_context
        )

    def first_s(self, prompt: int) -> float:
        """From the start of the prompt to its first token.

        Chunks go one a lap of the pipeline, each lap with the tokens of the others; a whole prompt
        passes the stages once, and when they are others' the last layer's KV travels after it.
        """
        split, profile = self._split, self._model.profile
        if split.family == CHUNKED:
            prompt_s = profile.stage_prompt_s(self._layers, 1, prompt)
            laps = math.ceil(prompt / split.chunk)
            stalled_s = self._token_s + self._stall_s
            return split.stages * (prompt_s + laps * self._utilisation * stalled_s)
        stages = split.prompt_stages or split.stages
        layers = math.ceil(profile.model.layers / stages)
        rows = self._prompt_rows()
        passed_s = stages * profile.stage_prompt_s(layers, rows, prompt)
        if not split.prompt_stages:
            return passed_s
        tail = rows * prompt * profile.model.kv_bytes_per_token / profile.machine.network
        return passed_s * self._times.stream_overhead + tail

    def _prompt_rows(self) -> int:
        """Prompts that pass together: one where rows are refilled one by one."""
        split = self._split
        if not (split.prompt_stages or self._model.workload.has_equal_outputs):
            return 1
        return _filled(split.prompt_batch or split.batch, self._utilisation)

    def decode_s(self, prompt: int, output: int) -> float:
        """All tokens after the first; others' prompts in between hold them up.

        A colocated microbatch sees D - 1 others replaced while it generates, each of which tears
        Y - t: the bubble of Equation 3, D times. Chunked, it sees all of their prompts as well,
        but in even pieces. Where rows are refilled one by one, every step is stalled by them.
        """
        split, times, profile = self._split, self._times, self._model.profile
        token_s = profile.stage_token_s(self._layers, self._rows, prompt + output / 2)
        if split.swap:
            swapped_s = times.decode_s / self._model.workload.mean_output
            token_s = max(token_s, swapped_s * self._utilisation)
        own_s = split.stages * output * token_s
        if split.prompt_stages:
            return own_s
        if not self._model.workload.has_equal_outputs:
            return own_s + self._utilisation * split.stages * output * self._stall_s
        if split.family == CHUNKED:
            share = output / self._model.workload.mean_output
            return own_s + self._utilisation * split.stages * times.prompt_s * share
        torn_s = (split.stages - 1) * max(0.0, times.prompt_s - times.token_s)
        return own_s + self._utilisation * torn_s


def _filled(batch: int, utilisation: float) -> int:
    return max(1, round(batch * min(1.0, utilisation)))


def _waits(model: CostModel, cost: Cost, utilisation: float) -> list[float]:
    """Quantiles of the wait in the queue, each standing for as many requests."""
    outputs = [output for _, output in model.workload.lengths]
    mean = model.workload.mean_output
    spread = sum((output - mean) ** 2 for output in outputs) / len(outputs) / mean**2
    service_s = 1 / cost.requests_per_s
    mean_wait_s = utilisation * service_s * (1 + spread) / (2 * (1 - utilisation))
    return [_wait_quantile((k + 0.5) / WAITS, utilisation, mean_wait_s) for k in range(WAITS)]


def _wait_quantile(quantile: float, utilisation: float, mean_wait_s: float) -> float:
    """Of a wait that is 0 with probability 1 - utilisation and else exponential."""
    if quantile <= 1 - utilisation:
        return 0.0
    return mean_wait_s / utilisation * math.log(utilisation / (1 - quantile))


def _percentiles(values: list[float]) -> Percentiles:
    ordered = sorted(values)
    p50, p95, p99 = (ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in PERCENTILES)
    return p50, p95, p99
