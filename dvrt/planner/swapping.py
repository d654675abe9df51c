"""Does swapping pay? Appendix G's condition for a step time and a bandwidth, however found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dvrt.errors import ConfigError
from dvrt.planner.equations import hidden_context, swapped_decode_time, transfer_time


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapJudgement:
    """For one microbatch of ``batch_size`` rows in place of half as many without swapping.

    ``plain_s`` is 2 N t, what the tokens take without, in two turns; ``swapped_s`` the sum of
    max(t, transfer_i). ``hidden_context`` is i*, the longest context whose swap-in one step hides.
    """

    batch_size: int
    first_context: int
    last_context: int
    step_s: float
    bandwidth: float
    plain_s: float
    swapped_s: float
    hidden_context: float

    @property
    def gain(self) -> float:
        """How many times the tokens a second: at most 2."""
        return self.plain_s / self.swapped_s

    @property
    def pays(self) -> bool:
        return self.plain_s >= self.swapped_s

    def __str__(self) -> str:
        verdict = "pays" if self.pays else "costs more than it brings"
        return (
            f"swapping {verdict} for contexts of {self.first_context} to {self.last_context} "
            f"tokens at batch size {self.batch_size}: {self.gain:.2f} times the tokens of half the "
            f"batch; a step of {self.step_s * 1e3:.3g} ms hides the swap-in of contexts up to "
            f"{self.hidden_context:.0f} tokens at {self.bandwidth / 1e9:.3g} GB/s"
        )


def judge_swapping(
    *,
    step_s: float,
    batch_size: int,
    entry_bytes: int,
    bandwidth: float,
    contexts: Sequence[int],
) -> SwapJudgement:
    """``step_s`` is t at ``batch_size``, ``entry_bytes`` C (of a stage's layers), ``contexts`` the
    lengths i that a microbatch goes through. Raises ConfigError for values that mean nothing.
    """
    given = {"step_s": step_s, "bandwidth": bandwidth, "entry_bytes": entry_bytes}
    for name, value in {**given, "batch_size": batch_size}.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; above 0 and finite")
    if not contexts or min(contexts) < 0:
        raise ConfigError("contexts: at least one, from 0 on")
    transfers = [
        transfer_time(context, batch=batch_size, token_kv=entry_bytes, bandwidth=bandwidth)
        for context in contexts
    ]
    return SwapJudgement(
        batch_size=batch_size,
        first_context=min(contexts),
        last_context=max(contexts),
        step_s=step_s,
        bandwidth=bandwidth,
        plain_s=2 * len(transfers) * step_s,
        swapped_s=swapped_decode_time(step_s, transfers),
        hidden_context=hidden_context(
            step_s, batch=batch_size, token_kv=entry_bytes, bandwidth=bandwidth
        ),
    )
