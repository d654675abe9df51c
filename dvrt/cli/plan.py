"""``dvrt plan``: what to buy and how to split it, from a profile and a workload."""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dvrt.cli.parameters import with_options
from dvrt.cli.places import check_places
from dvrt.errors import ConfigError
from dvrt.options import make_options, option, parse_size
from dvrt.planner.equation_report import EquationReport
from dvrt.planner.explain import equation_report, explain
from dvrt.planner.judge import SLO_KEYS, Candidate, SloTargets
from dvrt.planner.latency import PERCENTILES
from dvrt.planner.launch_line import launch_line
from dvrt.planner.output import draw_plan, plan_to_json
from dvrt.planner.plan import OBJECTIVES, Plan, PlanInput, make_plan
from dvrt.planner.profile import Profile, open_profile
from dvrt.planner.public import answer, parse_public_input
from dvrt.planner.split import FAMILIES
from dvrt.planner.workload import open_workload, parse_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What ``plan`` asks for; None leaves it to the profile or to the search."""

    profile: str | None = option(None, help="a profile file, or a shipped one by name")
    machines: int | None = option(None, help="machines to use at most", low=0, high=1_000_000)
    gpus: int | None = option(None, help="GPUs of a machine, tensor-parallel", low=1, high=64)
    memory: str | None = option(
        None, help="device memory of a machine, such as 320GB", otherwise="the profile's"
    )
    host_memory: str | None = option(None, help="host memory of a machine for swapping, replicas")
    workload: str = option(
        "prompt=1000,output=210,cv=1,longest=1000",
        help="a trace file, or prompt=..,output=..[,cv=..][,prompt_cv=..][,longest=..][,rate=..]",
    )
    slo: str | None = option(None, help="limits in seconds, as in ttft=2,tpot=0.1,normalized=0.2")
    percentile: int = option(95, help="which percentile must keep the limits", low=50, high=99)
    cost: float | None = option(None, help="dollars a machine and hour", low=0.0)
    objective: str = option("throughput", help="what to be best at", choices=OBJECTIVES)
    families: str = option(",".join(FAMILIES), help="kinds of split to consider")
    batch_sizes: tuple[int, ...] | None = option(None, help="batch sizes to consider, as in 4,8,16")
    swap: bool | None = option(None, help="only with, or only without swapping")
    replicas: tuple[int, ...] = option((0, 1, 2), help="numbers of KV replicas to consider")
    stream_overhead: float | None = option(None, help="the paper's m, where measured", low=1.0)
    mtbf_hours: float | None = option(None, help="mean time between failures of a machine", low=0.0)
    usable_share: float = option(0.9, help="share of device memory for weights and KV", high=1.0)
    model: str | None = option(None, help="checkpoint to name in the launch line")
    plot: str | None = option(None, help="draw requests/s of the best splits to this file")
    public: str | None = option(
        None, help="the public planner's answer to its arguments, as in num_machines=4,fp_size=2,.."
    )

    def check(self) -> None:
        """Raise ConfigError unless there is something to plan."""
        if self.public is None and (self.profile is None or self.machines is None):
            raise ConfigError("plan needs --profile and --machines, or --public")


@with_options(options=PlanOptions)
def plan(
    *,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    options: dict[str, Any],
) -> None:
    """Rank every way to split a model over machines, and say why."""
    given = make_options(PlanOptions, options)
    check_places(options, ("plot",))
    if given.public is not None:
        if json or given.plot:
            name = "json" if json else "plot"
            raise ConfigError(f"{name} does nothing with public, which prints two lines")
        print("\n".join(answer(parse_public_input(given.public)).lines()))
        return
    made = make_plan(plan_input(given))
    if given.plot:
        draw_plan(made, Path(given.plot))
    if json:
        print(json_format.dumps(plan_to_json(made, given.model)))
        return
    _show(made, given.model, Console())


def plan_input(given: PlanOptions) -> PlanInput:
    """The planner's input from the options; ConfigError for what does not make one."""
    limits = parse_numbers(given.slo, SLO_KEYS) if given.slo else {}
    return PlanInput(
        profile=_profile(given),
        workload=open_workload(given.workload),
        machines=given.machines or 0,
        batches=given.batch_sizes or (),
        families=tuple(name.strip() for name in given.families.split(",")),
        swap=given.swap,
        replicas=given.replicas,
        usable_share=given.usable_share,
        stream_overhead=given.stream_overhead,
        mtbf_hours=given.mtbf_hours,
        price_per_hour=given.cost,
        objective=given.objective,
        slo=SloTargets(
            ttft_s=limits.get("ttft"),
            tpot_s=limits.get("tpot"),
            normalized_s=limits.get("normalized"),
            percentile=given.percentile,
        ),
    )


def _profile(given: PlanOptions) -> Profile:
    profile = open_profile(given.profile or "")
    if given.gpus is not None:
        profile = profile.with_gpus(given.gpus)
    return profile.with_memory(
        parse_size("memory", given.memory) if given.memory else None,
        parse_size("host_memory", given.host_memory) if given.host_memory else None,
    )


def _show(made: Plan, model: str | None, console: Console) -> None:
    profile = made.given.profile
    console.print(f"{profile.model.name} on {made.given.machines} x {profile.machine.name}")
    console.print(f"Workload: {made.given.workload.describe()}\n")
    console.print(_ranking(made))
    if report := equation_report(made):
        console.print(f"\n{_equation_title(report)}", highlight=False)
        console.print(_equations(report))
    for line in explain(made):
        console.print(f"- {line}", highlight=False)
    console.print()
    console.print(launch_line(made, model), soft_wrap=True, highlight=False)


def _ranking(made: Plan) -> Table:
    """Latencies at the percentile that the limits are for; the others are in the JSON."""
    has_price = made.given.price is not None
    percentile = made.given.slo.percentile
    title = f"Best splits; latencies in seconds, percentile {percentile}"
    table = Table(title=title, title_justify="left")
    table.add_column("split", overflow="fold", min_width=16)
    for column in ("requests/s", "tokens/s", *(["$/M tokens"] if has_price else [])):
        table.add_column(column, justify="right")
    for column in ("ttft", "tpot", "s/token", "memory"):
        table.add_column(column, justify="right")
    for candidate in (made.best, *made.alternatives):
        table.add_row(*_ranking_row(candidate, PERCENTILES.index(percentile)))
    return table


def _ranking_row(candidate: Candidate, at: int) -> Iterator[str]:
    cost, latency = candidate.cost, candidate.latency
    yield candidate.split.describe()
    yield f"{cost.requests_per_s:.4g}"
    yield f"{cost.tokens_per_s:.4g}"
    if cost.dollars_per_million_tokens is not None:
        yield f"{cost.dollars_per_million_tokens:.2f}"
    for values in (latency.ttft_s, latency.tpot_s, latency.normalized_s):
        yield f"{values[at]:.3g}" if math.isfinite(values[at]) else "never"
    yield f"{max(need.needed_bytes / need.available_bytes for need in candidate.needs):.0%}"


def _equation_title(report: EquationReport) -> str:
    return (
        f"Equations 1-6, one pipeline, batch {report.batch}: Y = {report.prompt_time_s:.4g} s, "
        f"t = {report.token_time_s:.4g} s, m = {report.stream_overhead:.3g}, "
        f"Ic = {report.colocated_s:.4g} s, Idis* = {report.ideal_s:.4g} s, "
        f"Dp >= {report.min_prompt_machines or 'none'}, Dt >= {report.min_token_machines or 'none'}"
    )


def _equations(report: EquationReport) -> Table:
    table = Table()
    for column in ("Dp-Dt", "Ip s", "It s", "Idis s", "Ic / Idis", "fits"):
        table.add_column(column, justify="right")
    shown = sorted(report.splits, key=lambda line: line.inverse_s)[:5]
    for line in sorted(shown, key=lambda line: line.prompt_machines):
        table.add_row(
            f"{line.prompt_machines}-{line.token_machines}",
            f"{line.prompt_s:.4g}",
            f"{line.token_s:.4g}",
            f"{line.inverse_s:.4g}",
            f"{report.colocated_s / line.inverse_s:.3f}",
            "yes" if line.fits else "no",
        )
    return table
