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

    @property
    def paying_context(self) -> float:
        """The longest context that requests may fill, from their first token on, for it to pay.

        Up to N contexts take N²/(2 i*) + i*/2 steps beyond i*, and may take 2 N.
        """
        return (2 + math.sqrt(3)) * self.hidden_context

    def __str__(self) -> str:
        verdict = "pays" if self.pays else "costs more than it brings"
        return (
            f"swapping {verdict} for contexts of {self.first_context} to {self.last_context} "
            f"tokens at batch size {self.batch_size}: {self.gain:.2f} times the tokens of half the "
            f"batch; a step of {self.step_s * 1e3:.3g} ms hides the swap-in of contexts up to "
            f"{self.hidden_context:.0f} tokens at {self.bandwidth / 1e9:.3g} GB/s, and requests "
            f"that fill up to {self.paying_context:.0f} tokens gain"
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
    _check(step_s=step_s, batch_size=batch_size, entry_bytes=entry_bytes, bandwidth=bandwidth)
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


def judge_filling(
    max_context: int, *, step_s: float, batch_size: int, entry_bytes: int, bandwidth: float
) -> SwapJudgement:
    """As ``judge_swapping`` for the contexts from 1 to ``max_context``, at no more cost for many.

    Raises ConfigError for values that mean nothing.
    """
    _check(step_s=step_s, batch_size=batch_size, entry_bytes=entry_bytes, bandwidth=bandwidth)
    if max_context < 1:
        raise ConfigError("contexts: at least one")
    hidden = hidden_context(step_s, batch=batch_size, token_kv=entry_bytes, bandwidth=bandwidth)
    n_hidden = min(math.floor(hidden), max_context)
    beyond = (max_context - n_hidden) * (max_context + n_hidden + 1) / 2
    each_s = transfer_time(1, batch=batch_size, token_kv=entry_bytes, bandwidth=bandwidth)
    return SwapJudgement(
        batch_size=batch_size,
        first_context=1,
        last_context=max_context,
        step_s=step_s,
        bandwidth=bandwidth,
        plain_s=2 * max_context * step_s,
        swapped_s=n_hidden * step_s + beyond * each_s,
        hidden_context=hidden,
    )


def _check(**given: float) -> None:
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; above 0 and finite")
