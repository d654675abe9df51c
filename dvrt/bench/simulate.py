"""``bench simulate``: the public sweep of a model, a million requests over a thousand machines.

The first is as the public ``simulate_all`` does it; in the second the runtime's scheduler decides.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dvrt.bench.common import Measured, spread
from dvrt.planner.profile import open_profile
from dvrt.simulator.appendix_b import appendix_b_input
from dvrt.simulator.arrivals import Load
from dvrt.simulator.compat_pool import run_sweep, total_visits
from dvrt.simulator.compat_report import speed_ups
from dvrt.simulator.compat_sweep import choose_best
from dvrt.simulator.deploy import Setup, deploy_profile
from dvrt.simulator.fleet import Outcome, simulate

MODEL = "OPT-66B"
WORKERS = 2
FLEET = Setup(stages=4, clusters=250, batch=8, chunk_tokens=512)
FLEET_PROFILE = "opt-66b-a100-80"
FLEET_RATE_PER_S = 250.0
"""One request a second for each cluster, about four fifths of what it can do."""
FLEET_REQUESTS = 1_000_000
QUICK_REQUESTS = 10_000


def measure(*, quick: bool) -> Measured:
    """The whole search over 1 to 16 machines on two processes, started anew each time; the fleet
    once, on all cores.
    """
    given = appendix_b_input(MODEL)
    seconds = []
    for _ in range(1 if quick else 5):
        began = time.monotonic()
        outcomes = run_sweep(given, workers=WORKERS)
        seconds.append(time.monotonic() - began)
    events = total_visits(outcomes)
    sweep_s = spread(seconds)
    fleet = measure_fleet(QUICK_REQUESTS if quick else FLEET_REQUESTS)
    return Measured(
        results={
            "sweep_s": sweep_s,
            "processes": WORKERS,
            "configurations": len(outcomes),
            "events": events,
            "speed_ups": asdict(speed_ups(choose_best(given, outcomes))),
            "fleet": fleet,
        },
        ratios={
            "sweep_seconds": sweep_s["median"],
            "events_per_second": events / sweep_s["median"],
            "fleet_seconds": fleet["wall_s"],
            "fleet_events_per_second": fleet["events_per_s"],
            "fleet_requests_per_second": fleet["requests"] / fleet["wall_s"],
        },
        notes=(
            "nothing is predicted: this is the simulator's speed; bench fidelity has its errors",
            f"{MODEL} with the derived profile of four A100-80 a machine",
            f"fleet: {fleet['requests']:,} requests over {fleet['machines']:,} machines of two",
        ),
    )


def measure_fleet(requests: int) -> Mapping[str, Any]:
    """Seconds, events and memory of one run of the fleet; events are steps of stages."""
    profile = open_profile(FLEET_PROFILE).with_gpus(2)
    load = Load(
        source="prompt=1000,output=210,cv=1,longest=1000",
        count=requests,
        rate_per_s=FLEET_RATE_PER_S,
    )
    outcome = simulate(deploy_profile(FLEET, profile), load)
    counts = outcome.tally.counts
    return {
        "requests": int(counts["requests"]),
        "machines": outcome.deployment.machines,
        "wall_s": outcome.wall_s,
        "processes": outcome.processes,
        "steps": int(counts["steps"]),
        "events": int(counts["stage_steps"]),
        "decisions": int(counts["decisions"]),
        "events_per_s": outcome.events_per_s,
        "largest_process_bytes": _largest_process_bytes(outcome),
    }


def _largest_process_bytes(outcome: Outcome) -> int:
    """Resident memory of the largest process so far, this one or one that it has waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)[: 1 + (outcome.processes > 1)]
    return 1024 * max(resource.getrusage(each).ru_maxrss for each in who)
