"""``bench fidelity``: the simulator beside the runtime that it simulates, on the same requests.

Real processes serve a trace, with null devices that take their time and with a model on the CPU
that was profiled before; the simulator plays the same deployment over the same trace. Both count
alike. Every ratio is what was simulated over what was measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dvrt
from dvrt.bench.common import Measured
from dvrt.bench.fidelity_sides import Case, Side, null_side, real_side
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
class Compared:
    """One deployment over one trace, as it was measured and as it was simulated.

    ``load`` is the machine's load average behind it, which says how quiet it was.
    """

    measured: dict[str, float]
    simulated: dict[str, float]
    requests: int
    load: float

    def ratios(self) -> dict[str, float]:
        return {name: self.simulated[name] / value for name, value in self.measured.items()}


def measure(*, quick: bool) -> Measured:
    """Profile, serve and simulate.

    ``quick`` has shorter traces, a coarser profile, and of each side the first case only.
    """
    seconds = 2.0 if quick else 25.0
    found: dict[str, dict[str, Compared]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sides = [make(Path(scratch), quick=quick) for make in (null_side, real_side)]
        if quick:
            sides = [replace(side, cases=side.cases[:1]) for side in sides]
        for side in sides:
            found[side.name] = compare(side, Path(scratch), seconds)
    ratios = {
        f"{side}_{case}_{name}": ratio
        for side, cases in found.items()
        for case, compared in cases.items()
        for name, ratio in compared.ratios().items()
    }
    worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
    return Measured(
        results={
            **{side.name: _described(side, found[side.name]) for side in sides},
            "worst": worst,
        },
        ratios={**ratios, "worst_error": abs(ratios[worst] - 1)},
        notes=[
            "ratios: simulated over measured; worst_error is the largest distance from 1",
            *(f"{side.name}: {side.about}" for side in sides),
        ],
    )


def compare(side: Side, folder: Path, seconds: float) -> dict[str, Compared]:
    """Every case of a side; the one with a failure is served by the first one's cluster."""
    found: dict[str, Compared] = {}
    for case in side.cases:
        trace = write_trace(folder / f"{side.name}-{case.name}.json", case.rate_per_s, seconds)
        fails = Failure(at_s=seconds / 2, machine=FAILED_MACHINE) if case.fails else None
        names = (case.name, "failure") if fails else (case.name,)
        given = [(), (fails,)] if fails else [()]
        served = asyncio.run(serve(case, trace, given))
        for name, failures, tally in zip(names, given, served, strict=True):
            found[name] = Compared(
                measured=figures(tally),
                simulated=figures(play(case, trace, failures)),
                requests=int(tally.counts["requests"]),
                load=os.getloadavg()[0],
            )
    return found


async def serve(case: Case, trace: Path, runs: Sequence[Sequence[Failure]]) -> list[Tally]:
    """One cluster serves the trace once for each of these; a short run before does not count."""
    requests = list(arrivals(Load(source=str(trace))))
    async with dvrt.launch(case.model, **case.options) as engine:
        await replay(engine, [Arrival(0.0, PROMPTS[0], OUTPUTS[0])] * case.warm_up)
        return [await replay(engine, requests, failures=failures) for failures in runs]


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


def _described(side: Side, found: dict[str, Compared]) -> dict[str, Any]:
    return {
        "runtime": side.runtime,
        **{
            case: {
                "requests": compared.requests,
                "load": compared.load,
                "measured": compared.measured,
                "simulated": compared.simulated,
            }
            for case, compared in found.items()
        },
    }
