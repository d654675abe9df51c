"""``bench simulate``: the sweep of one model, as the public ``simulate_all`` does it."""

from __future__ import annotations

import time
from dataclasses import asdict

from dvrt.bench.common import Measured, spread
from dvrt.simulator.appendix_b import appendix_b_input
from dvrt.simulator.compat_pool import run_sweep, total_visits
from dvrt.simulator.compat_report import speed_ups
from dvrt.simulator.compat_sweep import choose_best

MODEL = "OPT-66B"
WORKERS = 2


def measure(*, quick: bool) -> Measured:
    """The whole search over 1 to 16 machines on two processes, started anew each time."""
    given = appendix_b_input(MODEL)
    seconds = []
    for _ in range(1 if quick else 5):
        began = time.monotonic()
        outcomes = run_sweep(given, workers=WORKERS)
        seconds.append(time.monotonic() - began)
    events = total_visits(outcomes)
    sweep_s = spread(seconds)
    return Measured(
        results={
            "sweep_s": sweep_s,
            "processes": WORKERS,
            "configurations": len(outcomes),
            "events": events,
            "speed_ups": asdict(speed_ups(choose_best(given, outcomes))),
        },
        ratios={
            "sweep_seconds": sweep_s["median"],
            "events_per_second": events / sweep_s["median"],
        },
        notes=(f"{MODEL} with the derived profile of four A100-80 a machine",),
    )
