"""Whether swapping pays, by the figures that stages tell: a launch may refuse, a status shows."""

from __future__ import annotations

from collections.abc import Mapping

from dvrt.models.swap_figures import SwapFigures
from dvrt.planner.swapping import SwapJudgement, judge_filling

REFUSED_GAIN = 0.5
"""A gain below 1 is warned of; below this it is refused, since no plausible error of the trial
would turn it round."""
FREE_GAIN = 2.0
"""Where copies cost nothing: the whole batch against half of it."""


def judge_figures(figures: SwapFigures) -> SwapJudgement | None:
    """Does swapping pay for requests that fill the context? None where copies take no time."""
    if not figures.bandwidth or not figures.step_s:
        return None
    return judge_filling(
        figures.max_context,
        step_s=figures.step_s,
        batch_size=figures.batch_size,
        entry_bytes=figures.entry_bytes,
        bandwidth=figures.bandwidth,
    )


def refusal(judged: SwapJudgement) -> str:
    """Why a launch is not to swap; empty where a trial of a moment cannot be so sure."""
    if judged.gain >= REFUSED_GAIN:
        return ""
    return (
        f"swap is refused: {judged}. Leave it out, set a max_context that requests need (now "
        f"{judged.last_context}), or go on with swap_anyway"
    )


def swap_status(figures: SwapFigures) -> Mapping[str, float]:
    """What a worker's status says of swapping; the figures of several stages are not added."""
    judged = judge_figures(figures)
    return {
        "device_slots": figures.device_slots,
        "host_kv_bytes": figures.host_kv_bytes,
        "step_s": figures.step_s,
        "bandwidth": figures.bandwidth,
        "hidden_context": judged.hidden_context if judged else float(figures.max_context),
        "paying_context": judged.paying_context if judged else float(figures.max_context),
        "gain": judged.gain if judged else FREE_GAIN,
        "in_bytes": figures.in_bytes,
        "out_bytes": figures.out_bytes,
        "waited_s": figures.waited_s,
    }
