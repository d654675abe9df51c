"""``bench fidelity``: the simulator beside the runtime that it simulates, on the same requests.

Real processes serve a trace, with null devices that take their time and with a model on the CPU
that was profiled before; the simulator plays the same deployment over the same trace, at the pace
that steps had meanwhile. Both count alike. Every ratio is what was simulated over what was
measured, the median of the rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.common import Measured
from dvrt.bench.fidelity_sides import Case, Side, null_side, real_side
from dvrt.bench.pace import Pace, at_pace, paces
from dvrt.bench.replay import replay
from dvrt.simulator.arrivals import Arrival, Load, arrivals
from dvrt.simulator.deployment import Failure
from dvrt.simulator.fleet import simulate
from dvrt.simulator.tally import Tally

MEDIANS = {
    "ttft_p50": "ttft_s",
    "tpot_p50": "tpot_s",
    "normalized_p50": "normalized_s",
    "latency_p50": "latency_s",
}
PROMPTS, OUTPUTS = (16, 160), (16, 96)
"""Lengths are drawn evenly between these."""
FAILED_MACHINE = 1
SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One deployment over one trace: as it was measured, as it was simulated, and as it would have
    been with step times ``as_profiled``.

    ``pace`` is how long steps took over what they were profiled to take, by pipeline and stage;
    ``load`` the machine's load average behind the round, which says how quiet it was.
    """

    measured: dict[str, float]
    simulated: dict[str, float]
    as_profiled: dict[str, float]
    pace: list[list[Pace]]
    requests: int
    load: float


def ratios(rounds: Sequence[Round]) -> dict[str, float]:
    """The median of the rounds' own."""
    return {
        name: statistics.median(each.simulated[name] / each.measured[name] for each in rounds)
        for name in rounds[0].measured
    }


def measure(*, quick: bool) -> Measured:
    """Profile, serve and simulate.

    ``quick`` has shorter traces, a coarser profile, one round, and each side's first case only.
    """
    seconds = 2.0 if quick else 25.0
    results: dict[str, Any] = {}
    found: dict[str, float] = {}
    notes = [
        "ratios: simulated over measured, with steps at the pace that they had while they were "
        "measured (pace: over what the profile says); worst_error is the largest distance from 1"
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for make in (null_side, real_side):
            side = make(Path(scratch), quick=quick)
            if quick:
                side = replace(side, cases=side.cases[:1])
            rounds = compare(side, Path(scratch), seconds)
            results[side.name] = {
                "runtime": side.runtime,
                **{case: [asdict(each) for each in played] for case, played in rounds.items()},
            }
            notes.append(f"{side.name}: {side.about}")
            for case, played in rounds.items():
                for name, ratio in ratios(played).items():
                    found[f"{side.name}_{case}_{name}"] = ratio
    worst = max(found, key=lambda name: abs(found[name] - 1))
    return Measured(
        results={**results, "worst": worst},
        ratios={**found, "worst_error": abs(found[worst] - 1)},
        notes=notes,
    )


def compare(side: Side, folder: Path, seconds: float) -> dict[str, list[Round]]:
    """Every case in every round, and the one that ``fails`` with a failure as well."""
    found: dict[str, list[Round]] = defaultdict(list)
    for _ in range(side.rounds):
        for case in side.cases:
            requests = folder / f"{side.name}-{case.name}.json"
            write_trace(requests, case.rate_per_s, seconds)
            for name, failures in _plans(case, seconds).items():
                found[name].append(_round(case, requests, failures, folder / "trace.json"))
    return found


def _round(case: Case, requests: Path, failures: Sequence[Failure], trace: Path) -> Round:
    traced = replace(case, options={**case.options, "trace": str(trace)})
    tally = asyncio.run(serve(traced, requests, failures))
    served = [*_warm_up(case), *arrivals(Load(source=str(requests)))]
    pace = paces(case.deployment, served, trace)
    paced = replace(case, deployment=at_pace(case.deployment, pace))
    return Round(
        measured=figures(tally),
        simulated=figures(play(paced, requests, failures)),
        as_profiled=figures(play(case, requests, failures)),
        pace=pace,
        requests=int(tally.counts["requests"]),
        load=os.getloadavg()[0],
    )


def _plans(case: Case, seconds: float) -> dict[str, tuple[Failure, ...]]:
    """The failures of each time that the requests are served, by a name for it."""
    plans: dict[str, tuple[Failure, ...]] = {case.name: ()}
    if case.fails:
        plans["failure"] = (Failure(at_s=seconds / 2, machine=FAILED_MACHINE),)
    return plans


async def serve(case: Case, trace: Path, failures: Sequence[Failure] = ()) -> Tally:
    """A cluster serves the trace; a short run before does not count."""
    requests = list(arrivals(Load(source=str(trace))))
    async with dvrt.launch(case.model, **case.options) as engine:
        await replay(engine, _warm_up(case))
        return await replay(engine, requests, failures=failures)


def _warm_up(case: Case) -> list[Arrival]:
    return [Arrival(0.0, PROMPTS[0], OUTPUTS[0])] * case.warm_up


def play(case: Case, trace: Path, failures: Sequence[Failure] = ()) -> Tally:
    """The simulator on the same deployment and trace."""
    deployment = case.deployment
    if failures:
        deployment = replace(
            deployment, failures=replace(deployment.failures, given=tuple(failures))
        )
    return simulate(deployment, Load(source=str(trace)), processes=1).tally


def figures(tally: Tally) -> dict[str, float]:
    """Generated tokens a second over the whole run, and the medians of latencies."""
    return {
        "throughput": tally.per_second("output_tokens"),
        **{name: tally.sketches[key].quantile(0.5) for name, key in MEDIANS.items()},
    }


def write_trace(path: Path, rate_per_s: float, seconds: float) -> Path:
    """Poisson arrivals for so long, a file as ``simulate --requests`` takes it."""
    chance, now, items = random.Random(SEED), 0.0, []
    while now < seconds:
        items.append([chance.randint(*PROMPTS), chance.randint(*OUTPUTS), now])
        now += chance.expovariate(rate_per_s)
    path.write_text(json.dumps(items))
    return path
