"""A plan for programs: one JSON object; and as a picture. Tables for people are the CLI's."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError
from dvrt.planner.explain import equation_report, explain, swap_verdict
from dvrt.planner.judge import Candidate
from dvrt.planner.launch_line import launch_line
from dvrt.planner.plan import Plan


def plan_to_json(plan: Plan, model: str | None = None) -> dict[str, Any]:
    """The plan with its reasons; infinite latencies are null. Times in seconds."""
    report, swap = equation_report(plan), swap_verdict(plan)
    return {
        "model": plan.given.profile.model.name,
        "profile": plan.given.profile.name,
        "profile_origin": plan.given.profile.origin,
        "machines": plan.given.machines,
        "workload": plan.given.workload.describe(),
        "keeps_slo": plan.keeps_slo,
        "best": candidate_to_json(plan.best),
        "alternatives": [candidate_to_json(candidate) for candidate in plan.alternatives],
        "nearest_misses": {
            family: {"split": split.describe(), "missing_bytes": need.missing_bytes}
            for family, (split, need) in plan.nearest_misses.items()
        },
        "splits_costed": plan.n_costed,
        "splits_too_large": plan.n_too_large,
        "equations": report.to_json() if report else None,
        "swapping": asdict(swap) | {"pays": swap.pays} if swap else None,
        "explanation": explain(plan),
        "launch": launch_line(plan, model),
    }


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    """One split: its shape, rates, latencies and memory."""
    cost, latency = candidate.cost, candidate.latency
    return {
        "split": asdict(candidate.split),
        "machines": candidate.split.machines,
        "inverse_s": cost.inverse_s,
        "prompt_side_s": cost.prompt_side_s,
        "token_side_s": cost.token_side_s,
        "requests_per_s": cost.requests_per_s,
        "tokens_per_s": cost.tokens_per_s,
        "dollars_per_million_tokens": cost.dollars_per_million_tokens,
        "availability": cost.availability,
        "utilisation": latency.utilisation,
        "ttft_s": _percentiles(latency.ttft_s),
        "tpot_s": _percentiles(latency.tpot_s),
        "normalized_s": _percentiles(latency.normalized_s),
        "memory": [asdict(need) for need in candidate.needs],
        "violations": list(candidate.violations),
    }


def _percentiles(values: tuple[float, float, float]) -> dict[str, float | None]:
    finite = (value if math.isfinite(value) else None for value in values)
    return dict(zip(("p50", "p95", "p99"), finite, strict=True))


def draw_plan(plan: Plan, path: Path) -> None:
    """Requests a second of the winner and the alternatives as bars; the format is the suffix's.

    Needs matplotlib, which is imported here; ConfigError without it or for an unknown suffix.
    """
    figure_class = import_figure_class()
    candidates = [plan.best, *plan.alternatives]
    figure = figure_class(figsize=(9, 1.2 + 0.4 * len(candidates)), layout="constrained")
    axes = figure.add_subplot()
    names = [candidate.split.describe() for candidate in candidates]
    rates = [candidate.cost.requests_per_s for candidate in candidates]
    colors = ["tab:green"] + ["tab:blue"] * len(plan.alternatives)
    axes.barh(range(len(names)), rates, color=colors)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("requests/s")
    profile = plan.given.profile
    axes.set_title(f"{profile.model.name} on {plan.given.machines} x {profile.machine.name}")
    save_figure(figure, path)


def import_figure_class() -> Any:
    """matplotlib's Figure, without pyplot and its state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib; pip install matplotlib") from error
    return Figure


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure; ConfigError when the path or its suffix does not work."""
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
