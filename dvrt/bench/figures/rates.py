"""Fig. 8: latency over the rate of requests, prompts apart from tokens and not.

The curves are the simulator's, the gains those of ``bench disagg`` on the real runtime.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dvrt.bench.figures.figure import (
    EMULATED,
    SIMULATED,
    Figure,
    Findings,
    Row,
    Source,
    times,
)
from dvrt.bench.figures.reports import Known, bench_notes, ratio_rows
from dvrt.bench.figures.store import bench_source
from dvrt.simulator.deployment import Deployment
from dvrt.simulator.disagg_case import (
    CASES,
    DisaggregationCase,
    case_requests,
    chunked,
    colocated,
    disaggregated,
)
from dvrt.simulator.rates import SLACK, simulated_latencies

N_REQUESTS = 400
UNLOADED_PER_S = 1e-6
TALLEST = 4
"""What is drawn, as a multiple of the unloaded latency."""
RATES: Mapping[str, tuple[float, ...]] = {
    "opt66b_4": (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2),
    "bloom176b_7": (0.05, 0.15, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
}
SIDES: Mapping[str, Callable[[DisaggregationCase], Deployment]] = {
    "colocated": colocated,
    "chunked": chunked,
    "disaggregated": disaggregated,
}
TITLES = {"opt66b_4": "OPT-66B, 4 machines, 1-3", "bloom176b_7": "BLOOM-176B, 7 machines, 3-4"}
KNOWN: Mapping[str, Known] = {
    "opt66b_4_rate_gain": Known(
        what="OPT-66B, 1-3 over one pipeline of 4: sustained rate",
        how=EMULATED,
        paper="1.88x",
        is_headline=True,
    ),
    "bloom176b_7_rate_gain": Known(
        what="BLOOM-176B, 3-4 over one pipeline of 7: sustained rate",
        how=EMULATED,
        paper="up to 2x",
        is_headline=True,
    ),
    "opt66b_vs_chunked": Known(
        what="OPT-66B, over one pipeline that computes prompts in chunks", how=EMULATED
    ),
    "bloom176b_vs_chunked": Known(
        what="BLOOM-176B, over one pipeline that computes prompts in chunks", how=EMULATED
    ),
    "opt66b_vs_predicted": Known(what="OPT-66B, runtime over the plain model", how=EMULATED),
    "bloom176b_vs_predicted": Known(what="BLOOM-176B, runtime over the plain model", how=EMULATED),
}


def make(_quick: bool) -> Mapping[str, Any]:
    """The median seconds a token of each deployment, unloaded and at each rate."""
    requests = case_requests(count=N_REQUESTS)

    def median_s(deployment: Deployment, rate_per_s: float) -> float:
        return statistics.median(simulated_latencies(deployment, requests(rate_per_s)))

    return {
        name: {
            "rates_per_s": rates,
            **{
                side: {
                    "unloaded_s": median_s(deploy(CASES[name]), UNLOADED_PER_S),
                    "median_s": [median_s(deploy(CASES[name]), rate) for rate in rates],
                }
                for side, deploy in SIDES.items()
            },
        }
        for name, rates in RATES.items()
    }


def draw(figure: Any, findings: Findings) -> None:
    data = findings.get("rates", {})
    panels = figure.subplots(1, len(TITLES))
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        axes.set(title=title, xlabel="requests/s", ylabel="median s a token")
        if name in data:
            _draw_curves(axes, data[name])
        report = findings.get("disagg", {"results": {}})["results"].get(name)
        if report:
            _mark_rates(axes, report)
        axes.legend(fontsize=8)


def _draw_curves(axes: Any, found: Mapping[str, Any]) -> None:
    for at, side in enumerate(SIDES):
        color = f"C{at}"
        axes.plot(found["rates_per_s"], found[side]["median_s"], color=color, label=side)
        axes.axhline(SLACK * found[side]["unloaded_s"], color=color, linestyle=":", linewidth=0.8)
    axes.set(xlim=(0, None), ylim=(0, TALLEST * found["colocated"]["unloaded_s"]))


def _mark_rates(axes: Any, report: Mapping[str, Any]) -> None:
    for at, side in enumerate(SIDES):
        if side in report:
            rate, unloaded_s = report[side]["rate_per_s"], report[side]["unloaded_s_per_token"]
            axes.plot([rate], [SLACK * unloaded_s], "o", color=f"C{at}")


def rows(findings: Findings) -> Iterator[Row]:
    if "disagg" in findings:
        yield from ratio_rows(findings["disagg"], KNOWN, others=EMULATED)
    for name, found in findings.get("rates", {}).items():
        rates = {side: crossing(found["rates_per_s"], found[side]) for side in SIDES}
        shown = ", ".join(f"{rate:.2f}" for rate in rates.values())
        gain = rates["disaggregated"] / rates["colocated"]
        yield Row(
            what=f"{TITLES[name]}: requests/s kept {', '.join(rates)}; last over first",
            ours=f"{shown}; {times(gain)}",
            how=SIMULATED,
        )


def crossing(rates: list[float], found: Mapping[str, Any]) -> float:
    """Where the curve first leaves the bound, by a straight line; the last rate if it never does.

    Of one deployment; the curve begins at no load.
    """
    bound = SLACK * found["unloaded_s"]
    at, median_s = 0.0, found["unloaded_s"]
    for rate, seen_s in zip(rates, found["median_s"], strict=True):
        if seen_s > bound:
            return float(at + (rate - at) * (bound - median_s) / (seen_s - median_s))
        at, median_s = rate, seen_s
    return float(at)


def notes(findings: Findings) -> Iterator[str]:
    yield (
        f"Lines: the simulator proper, {N_REQUESTS} requests (prompt 1000, outputs lognormal of "
        f"mean 210), microbatches of 8, derived times of two A100-80 a machine. Dotted: "
        f"{SLACK} times the unloaded median, within which a rate counts as kept. Dots: `bench "
        "disagg`, the real runtime on null devices under virtual time."
    )
    yield (
        "What may make our gains differ from the paper's: its trace, arrivals and step times are "
        "not public; a bound on the median latency, as here, is kinder to a pipeline that no "
        "prompt stops than the sight of a curve; and neither network nor kernels disturb anybody "
        "here. simulator.md has the sensitivity to step times. Rates from the curves are "
        "interpolated between those that were simulated. The paper has no chunked prefill."
    )
    if "disagg" in findings:
        yield from bench_notes(findings["disagg"])


FIGURE = Figure(
    name="fig08",
    title="Fig. 8: rates with prompts apart from tokens",
    sources=(Source(name="rates", make=make, slow=True), bench_source("disagg")),
    draw=draw,
    rows=rows,
    notes=notes,
)
