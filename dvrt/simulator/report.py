"""What a simulation found, as one JSON object and as lines of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dvrt.simulator.deployment import Deployment
from dvrt.simulator.fleet import Outcome
from dvrt.simulator.tally import Tally

COUNTS = ("requests", "prompt_tokens", "output_tokens", "failures", "recomputed_tokens")


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Throughput, latencies, waits by place, stages, cost, and how fast it was simulated.

    Rates are over the time from the first arrival to the last end, filling and draining included.
    """
    tally, deployment = outcome.tally, outcome.deployment
    return {
        "machines": deployment.machines,
        "clusters": deployment.clusters,
        "makespan_s": tally.makespan_s,
        "requests_per_s": tally.per_second("requests"),
        "output_tokens_per_s": tally.per_second("output_tokens"),
        **{name: int(tally.counts.get(name, 0)) for name in COUNTS},
        "restored_entries": int(tally.counts.get("restored_tokens", 0)),
        "sent_bytes": tally.counts.get("sent_bytes", 0.0),
        "swap_wait_s": tally.counts.get("swap_wait_s", 0.0),
        "latencies": dict(tally.quantiles()),
        "stages": [
            {"stage": stage, "utilisation": share, "bubbles": 1 - share}
            for stage, share in utilisation(tally, deployment).items()
        ],
        "cost": cost(tally, deployment),
        "simulation": {
            "wall_s": outcome.wall_s,
            "processes": outcome.processes,
            "steps": int(tally.counts["steps"]),
            "events": int(tally.counts["stage_steps"]),
            "decisions": int(tally.counts["decisions"]),
            "events_per_s": outcome.events_per_s,
        },
    }


def utilisation(tally: Tally, deployment: Deployment) -> dict[str, float]:
    """The share of the makespan that each stage computes, averaged over the clusters."""
    whole_s = tally.makespan_s * deployment.clusters
    return {stage: busy_s / whole_s if whole_s else 0.0 for stage, busy_s in tally.busy_s.items()}


def cost(tally: Tally, deployment: Deployment) -> dict[str, float] | None:
    """Dollars for all machines over the makespan, and for a million generated tokens; or None."""
    tokens = tally.counts.get("output_tokens", 0)
    if deployment.price_per_hour is None or not tokens:
        return None
    dollars = deployment.price_per_hour * deployment.machines * tally.makespan_s / 3600
    return {"dollars": dollars, "dollars_per_million_tokens": dollars / tokens * 1e6}


def latency_rows(tally: Tally) -> Iterator[tuple[str, ...]]:
    """Name, then mean, median, 95th and 99th percentile and largest, in seconds; as text."""
    for name, figures in tally.quantiles().items():
        if figures["count"]:
            marks = (figures[key] for key in ("mean", "p50", "p95", "p99", "max"))
            yield (name.removesuffix("_s").replace("_", " "), *(f"{mark:.4g}" for mark in marks))


def summary_lines(outcome: Outcome) -> Iterator[str]:
    """The rest, one fact a line."""
    tally, found = outcome.tally, outcome_to_json(outcome)
    yield (
        f"{found['requests']:,} requests on {found['machines']:,} machines in "
        f"{tally.makespan_s:,.1f} s: {found['requests_per_s']:.4g} requests/s, "
        f"{found['output_tokens_per_s']:.4g} tokens/s"
    )
    if found["cost"]:
        dollars = found["cost"]["dollars_per_million_tokens"]
        yield f"${found['cost']['dollars']:,.2f}, ${dollars:,.2f} per million tokens"
    if found["failures"]:
        yield (
            f"{found['failures']} failures; {found['recomputed_tokens']:,} tokens computed again, "
            f"{found['restored_entries']:,} entries restored from replicas"
        )
    if found["swap_wait_s"]:
        yield f"stages waited {found['swap_wait_s']:,.1f} s for swapping"
    played = found["simulation"]
    yield (
        f"simulated in {played['wall_s']:.1f} s on {played['processes']} processes: "
        f"{played['events']:,} steps of stages ({played['events_per_s']:,.0f} a second), "
        f"{played['decisions']:,} decisions of the scheduler"
    )
