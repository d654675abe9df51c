"""Fig. 3: bubbles of a pipeline that computes prompts and tokens, and how the share grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dvrt.bench.figures.figure import SIMULATED, Figure, Findings, Row, Source
from dvrt.simulator.arrivals import Load
from dvrt.simulator.compat_model import simulate_colocated
from dvrt.simulator.compat_steps import Visit
from dvrt.simulator.deployment import Deployment
from dvrt.simulator.disagg_case import (
    CASES,
    OUTPUTS,
    PROMPT,
    DisaggregationCase,
    chunked,
    colocated,
    disaggregated,
)
from dvrt.simulator.fleet import simulate
from dvrt.simulator.report import utilisation

STAGES = 4
DRAWN_LENGTHS = (6, 3, 6, 6, 6, 6, 6, 6)
"""The second microbatch stops early, and the fifth's prompt takes its place."""
PROMPT_MS, TOKEN_MS, TOKENS = 1700.0, 17.0, 200
N_EQUAL = 400
N_REQUESTS = 400
WAYS: Mapping[str, Callable[[DisaggregationCase], Deployment]] = {
    "colocated": colocated,
    "chunked": chunked,
    "disaggregated": disaggregated,
}


def make(_quick: bool) -> Mapping[str, Any]:
    """The timeline that is drawn, the share of Eq. 3 and of the simulation, and larger cases."""
    visits: list[Visit] = []
    simulate_colocated(
        DRAWN_LENGTHS,
        machines=STAGES,
        prompt_time_ms=2,
        token_time_ms=1,
        on_visit=visits.append,
    )
    timeline = [[v.stage, v.microbatch, v.token, v.start_us, v.duration_us] for v in visits]
    return {
        "timeline": timeline,
        "equal": _equal(),
        "unequal_ms": _per_microbatch_ms([2, 18] * (N_EQUAL // 2), 100, 20),
        "equal_ms": _per_microbatch_ms([10] * N_EQUAL, 100, 20),
        "idle_shares": {name: _idle_shares(case) for name, case in CASES.items()},
    }


def _per_microbatch_ms(lengths: list[int], prompt_ms: float, token_ms: float) -> float:
    found = simulate_colocated(
        lengths, machines=STAGES, prompt_time_ms=prompt_ms, token_time_ms=token_ms
    )
    return 1000 * found.makespan_s / len(lengths)


def _equal() -> dict[str, float]:
    bubble_ms = (STAGES - 1) * (PROMPT_MS - TOKEN_MS) / STAGES
    whole_ms = PROMPT_MS + TOKENS * TOKEN_MS + bubble_ms
    simulated_ms = _per_microbatch_ms([TOKENS] * N_EQUAL, PROMPT_MS, TOKEN_MS)
    busy_ms = PROMPT_MS + TOKENS * TOKEN_MS
    return {"equation": bubble_ms / whole_ms, "simulated": 1 - busy_ms / simulated_ms}


def _idle_shares(case: DisaggregationCase) -> dict[str, float]:
    """Mean over the stages of the time not computing, with all requests there at once."""
    load = Load(source=f"prompt={PROMPT},{OUTPUTS}", count=N_REQUESTS)
    shares = {}
    for name, deploy in WAYS.items():
        outcome = simulate(deploy(case), load, processes=1)
        busy = utilisation(outcome.tally, outcome.deployment)
        shares[name] = 1 - sum(busy.values()) / len(busy)
    return shares


def draw(figure: Any, findings: Findings) -> None:
    data = findings["bubbles"]
    timeline, bars = figure.subplots(1, 2, width_ratios=(2.4, 1))
    for stage, microbatch, token, start_us, duration_us in data["timeline"]:
        color = f"C{microbatch}"
        place = (start_us / 1000, duration_us / 1000)
        timeline.broken_barh(
            [place], (stage - 0.42, 0.84), color=color, alpha=0.95 if token is None else 0.45
        )
    timeline.set(xlabel="token steps", ylabel="stage", yticks=range(STAGES), xlim=(0, 36))
    timeline.invert_yaxis()
    timeline.set_title("a colour a microbatch; prompts dark; gaps are bubbles", fontsize=9)
    for at, (case, shares) in enumerate(data["idle_shares"].items()):
        places = [way + 0.38 * (at - 0.5) for way in range(len(shares))]
        bars.bar(places, list(shares.values()), 0.38, label=case.partition("_")[0])
    bars.set_xticks(range(len(WAYS)), list(WAYS), fontsize=8)
    bars.set(ylabel="idle share", ylim=(0, 1))
    bars.legend(fontsize=8)


def rows(findings: Findings) -> Iterator[Row]:
    data = findings["bubbles"]
    equal = data["equal"]
    yield Row(
        what=f"bubbles at D = {STAGES}, Y = 1700 ms, t = 17 ms, N = {TOKENS}",
        paper=f"{equal['equation']:.1%} (Eq. 3)",
        ours=f"{equal['simulated']:.1%}",
        how=SIMULATED,
        is_headline=True,
    )
    yield Row(
        what="outputs of 2 and 18 against 10 and 10 tokens, ms a microbatch",
        ours=f"{data['unequal_ms']:.0f} against {data['equal_ms']:.0f} "
        f"({data['unequal_ms'] / data['equal_ms'] - 1:+.0%})",
        how=SIMULATED,
    )
    for case, shares in data["idle_shares"].items():
        yield Row(
            what=f"idle share of {case.replace('_', ' on ')} machines: {', '.join(shares)}",
            ours=", ".join(f"{share:.0%}" for share in shares.values()),
            how=SIMULATED,
        )


def notes(_findings: Findings) -> Iterator[str]:
    yield (
        "Left: the paper's drawing, four stages and a prompt of two token steps, played by the "
        "compatibility simulator. Right: the simulator proper, which the runtime's scheduler "
        f"drives, on derived step times with {N_REQUESTS} requests of unequal length there at "
        "once; start and drain count as idle, and so does a pipeline for prompts that has no more "
        "to do."
    )


FIGURE = Figure(
    name="fig03",
    title="Fig. 3: bubbles",
    sources=(Source(name="bubbles", make=make),),
    draw=draw,
    rows=rows,
    notes=notes,
)
