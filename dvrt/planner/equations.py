"""The paper's Equations 1 to 6 as plain functions of numbers.

Times share one unit (seconds, milliseconds, as the caller likes), sizes another; nothing here
knows what a model or a machine is. "Inverse throughput" is the time per microbatch in steady
state, so less is better. Source: DéjàVu (ICML 2024) §4.2.1, §4.2.2 and Appendices D and G.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def prompt_layers_per_machine(memory: float, *, layer_weights: float, prompt_kv: float) -> int:
    """Equation 1: how many layers one prompt machine holds, ``Pn = floor(M / (C0 + W0))``."""
    return math.floor(memory / (prompt_kv + layer_weights))


def min_prompt_machines(
    layers: int, memory: float, *, layer_weights: float, prompt_kv: float
) -> int | None:
    """Equation 1: ``Dp >= ceil(L / Pn)``; None when not even one layer fits a machine."""
    held = prompt_layers_per_machine(memory, layer_weights=layer_weights, prompt_kv=prompt_kv)
    return math.ceil(layers / held) if held > 0 else None


def token_layers_per_machine(
    layers: int, memory: float, *, layer_weights: float, microbatch_kv: float
) -> int:
    """Equation 2: ``Tn = floor((M - L (C0 + K0)) / W0)``; below 1 when the KV is too big.

    ``microbatch_kv`` is C0 + K0: prompt and generated entries of one microbatch and one layer. A
    token machine holds Dt microbatches of Tn layers each, and Tn times Dt is L.
    """
    return math.floor((memory - layers * microbatch_kv) / layer_weights)


def min_token_machines(
    layers: int, memory: float, *, layer_weights: float, microbatch_kv: float
) -> int | None:
    """Equation 2: ``Dt >= ceil(L / Tn)``; None when the KV of the microbatches leaves no room."""
    held = token_layers_per_machine(
        layers, memory, layer_weights=layer_weights, microbatch_kv=microbatch_kv
    )
    return math.ceil(layers / held) if held > 0 else None


def colocated_inverse_throughput(
    stages: int, *, prompt_time: float, token_time: float, tokens: float
) -> float:
    """Equation 3, colocated: ``Ic = Y + N t + (D - 1)(Y - t) / D``.

    Y and t are times of one microbatch on one of D stages, N the tokens generated. The last term
    is the bubble that a prompt tears into the token steps of the others.
    """
    bubble = (stages - 1) * (prompt_time - token_time) / stages
    return prompt_time + tokens * token_time + bubble


def prompt_inverse_throughput(
    machines: int, prompt_machines: int, *, prompt_time: float, stream_overhead: float = 1.0
) -> float:
    """Equation 3, prompt side: ``Ip = m D Y / Dp``, with Y measured on a D-deep pipeline."""
    return stream_overhead * machines * prompt_time / prompt_machines


def token_inverse_throughput(
    machines: int, token_machines: int, *, token_time: float, tokens: float
) -> float:
    """Equation 3, token side: ``It = N D t / Dt``, with t measured on a D-deep pipeline."""
    return tokens * machines * token_time / token_machines


def ideal_disaggregated_inverse_throughput(
    *, prompt_time: float, token_time: float, tokens: float, stream_overhead: float = 1.0
) -> float:
    """What Equations 5 and 6 reach with fractional machines: ``Idis* = m Y + N t``."""
    return stream_overhead * prompt_time + tokens * token_time


def gain_threshold(stages: int, stream_overhead: float = 1.0) -> float | None:
    """Equation 4: disaggregation gains when Y/t exceeds ``(D - 1) / (D (2 - m) - 1)``.

    None when no ratio is enough, that is when ``m >= 2 - 1/D``.
    """
    divisor = stages * (2 - stream_overhead) - 1
    return (stages - 1) / divisor if divisor > 0 else None


def disaggregation_gains(
    stages: int, *, prompt_time: float, token_time: float, stream_overhead: float = 1.0
) -> bool:
    """Equation 4: whether the ideal split beats the colocated pipeline of the same machines."""
    threshold = gain_threshold(stages, stream_overhead)
    return threshold is not None and prompt_time > threshold * token_time


def ideal_token_machines(
    machines: int,
    *,
    prompt_time: float,
    token_time: float,
    tokens: float,
    stream_overhead: float = 1.0,
) -> float:
    """Equation 5: ``Dt = D N t / (m Y + N t)``, where Ip equals It; a fraction."""
    decode = tokens * token_time
    return machines * decode / (stream_overhead * prompt_time + decode)


def ideal_prompt_machines(
    machines: int,
    *,
    prompt_time: float,
    token_time: float,
    tokens: float,
    stream_overhead: float = 1.0,
) -> float:
    """Equation 6: ``Dp = D m Y / (m Y + N t)``; with Equation 5 it adds up to D."""
    prompt = stream_overhead * prompt_time
    return machines * prompt / (prompt + tokens * token_time)


def transfer_time(context: float, *, batch: int, token_kv: float, bandwidth: float) -> float:
    """Appendix G: ``transf_i = i B C / bw``, moving a microbatch of context i to the device."""
    return context * batch * token_kv / bandwidth


def hidden_context(step_time: float, *, batch: int, token_kv: float, bandwidth: float) -> float:
    """Appendix G: ``i* = t bw / (B C)``, the longest context whose transfer a step still hides."""
    return step_time * bandwidth / (batch * token_kv)


def swapped_decode_time(step_time: float, transfer_times: Iterable[float]) -> float:
    """Appendix G: ``sum_i max(t, transf_i)``, a stage's time for one microbatch's tokens."""
    return math.fsum(max(step_time, transfer) for transfer in transfer_times)


def swapping_gains(step_time: float, transfer_times: Iterable[float]) -> bool:
    """Appendix G: twice the batch with swapping wins when ``2 N t >= sum_i max(t, transf_i)``."""
    times = list(transfer_times)
    return 2 * len(times) * step_time >= swapped_decode_time(step_time, times)
