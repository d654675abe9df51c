"""``dvrt simulate --profile``: a deployment over a trace, driven by the runtime's scheduler."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from dvrt.cli.places import check_places
from dvrt.cli.signals import interruptible
from dvrt.clock import ManualClock
from dvrt.errors import ConfigError
from dvrt.models.null_timing import read_timing
from dvrt.observe.trace import Tracer
from dvrt.options import make_options, option
from dvrt.planner.profile import Profile, open_profile
from dvrt.simulator.arrivals import Load, arrivals
from dvrt.simulator.deploy import Setup, check_memory, deploy_profile, deploy_times
from dvrt.simulator.deployment import Deployment, Failure, FailureFigures
from dvrt.simulator.fleet import Outcome, simulate
from dvrt.simulator.plots import draw_outcome
from dvrt.simulator.report import latency_rows, outcome_to_json, summary_lines, utilisation
from dvrt.simulator.router import LEAST_WORK, ROUTERS

DEFAULT_COUNT = 1000
SHARED = ("requests", "trace", "plot", "workers")
"""Options that mean the same in the public simulators' mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProperOptions:
    """A deployment and what is asked of it; with one of the first two, this is what is simulated.

    The rest are the options of ``launch`` and ``plan``, with their meanings. Their defaults, too,
    but for ``replicas``, of which a simulation has none, where ``launch`` keeps one.
    """

    profile: str | None = option(None, help="simulate a deployment by this profile, file or name")
    null_timing: str | None = option(None, help="or by a TOML file with the null device's times")
    gpus: int | None = option(None, help="GPUs of a machine, tensor-parallel", low=1, high=64)
    stages: int = option(1, help="stages; with prompt stages apart, those for tokens", low=1)
    prompt_stages: int = option(0, help="stages for prompts only", low=0)
    clusters: int = option(1, help="equal clusters side by side", low=1, high=1_000_000)
    router: str = option(LEAST_WORK, help="who gets a request", choices=ROUTERS)
    batch_size: int = option(8, help="rows of a microbatch", low=1)
    prompt_batch_size: int | None = option(None, help="rows of a prompt microbatch", low=1)
    microbatches: int | None = option(None, help="in flight", low=1, otherwise="stages + 1")
    prompt_microbatches: int | None = option(None, help="of prompts in flight", low=1)
    chunk_tokens: int = option(64, help="prompt positions of one chunk", low=1)
    chunks_per_step: int = option(2, help="prompt chunks beside a step's decodes", low=1)
    swap: bool = option(False, help="keep in host memory the microbatches that do not compute")
    device_slots: int = option(2, help="microbatches on the device, with swap", low=2)
    replicas: int = option(0, help="copies of each stage's KV, 1 in a launch", low=0)
    workload: str = option(
        "prompt=1000,output=210,cv=1,longest=1000",
        help="prompt=..,output=..[,cv=..][,longest=..][,rate=..], or --requests",
    )
    count: int | None = option(
        None, help="requests", low=1, otherwise=f"the trace's, or {DEFAULT_COUNT}"
    )
    rate: float | None = option(None, help="requests a second, Poisson, for all clusters together")
    seed: int = option(42, help="of lengths, arrivals and failures", low=0)
    fail: str | None = option(None, help="[cluster:]machine@seconds, several with commas")
    mtbf_hours: float | None = option(None, help="mean time between failures of a machine")
    detect: float | None = option(None, help="time to notice a loss", unit="s", low=0.0)
    restart: float | None = option(None, help="time until a replacement starts", unit="s", low=0.0)
    usable_share: float = option(0.9, help="of device memory for weights and KV", high=1.0)
    cost: float | None = option(None, help="dollars a machine and hour", low=0.0)

    def check(self) -> None:
        """Raise ConfigError for options that contradict each other."""
        if self.profile is not None and self.null_timing is not None:
            raise ConfigError("give --profile or --null-timing, not both")
        if self.null_timing is not None and self.gpus is not None:
            raise ConfigError("gpus needs --profile")


def simulate_proper(
    options: Mapping[str, Any], shared: Mapping[str, Any], *, as_json: bool
) -> None:
    """Simulate and show. ``shared`` are the options of both modes that were given."""
    given = make_options(ProperOptions, options)
    check_places(shared, ("trace", "plot"))
    if foreign := sorted(set(shared) - set(SHARED)):
        raise ConfigError(f"{foreign[0]} belongs to the public simulators; not with --profile")
    load = load_of(given, shared.get("requests"))
    deployment = deployment_of(given, load)
    outcome = _play(given, deployment, load, shared)
    if shared.get("plot"):
        title = f"{given.profile or given.null_timing}, {deployment.machines} machines"
        draw_outcome(outcome, Path(shared["plot"]), title=title)
    if as_json:
        print(json_format.dumps(outcome_to_json(outcome)))
        return
    _show(outcome)


def load_of(given: ProperOptions, requests: str | None) -> Load:
    """The requests: those of a trace file, else drawn."""
    load = Load(
        source=requests or given.workload,
        count=given.count,
        rate_per_s=given.rate,
        seed=given.seed,
    )
    if requests is not None and not Path(requests).exists():
        raise ConfigError(f"{requests}: no such file")
    if load.count is None and not load.is_trace:
        return replace(load, count=DEFAULT_COUNT)
    return load


def deployment_of(given: ProperOptions, load: Load) -> Deployment:
    """What is simulated; ConfigError with what is missing if a profile's model does not fit."""
    setup = Setup(
        stages=given.stages,
        prompt_stages=given.prompt_stages,
        clusters=given.clusters,
        batch=given.batch_size,
        prompt_batch=given.prompt_batch_size,
        microbatches=given.microbatches,
        prompt_microbatches=given.prompt_microbatches,
        chunk_tokens=given.chunk_tokens,
        chunks_per_step=given.chunks_per_step,
        device_slots=given.device_slots if given.swap else None,
        replicas=given.replicas,
    )
    if given.null_timing is not None:
        timing = read_timing(Path(given.null_timing))
        failures = _failures(given, FailureFigures())
        return deploy_times(setup, timing, failures=failures, price_per_hour=given.cost)
    profile = open_profile(given.profile or "")
    if given.gpus is not None:
        profile = profile.with_gpus(given.gpus)
    deployment = deploy_profile(
        setup, profile, failures=_profile_failures(given, profile), price_per_hour=given.cost
    )
    _check_fit(deployment, profile, load, given.usable_share)
    return deployment


def parse_failures(text: str) -> tuple[Failure, ...]:
    """``2@100,3:0@50``: machine 2 after 100 s, and machine 0 of cluster 3 after 50 s."""
    return tuple(_parse_failure(part.strip()) for part in text.split(","))


def _parse_failure(text: str) -> Failure:
    where, _, moment = text.partition("@")
    cluster, _, machine = where.rpartition(":")
    try:
        place = (float(moment), int(machine), int(cluster or 0))
    except ValueError as error:
        raise ConfigError(f"fail is {text!r}; expected [cluster:]machine@seconds") from error
    at_s, number, group = place
    return Failure(at_s=at_s, machine=number, cluster=group)


def _failures(given: ProperOptions, usual: FailureFigures) -> FailureFigures:
    return FailureFigures(
        given=parse_failures(given.fail) if given.fail else (),
        mtbf_s=None if given.mtbf_hours is None else given.mtbf_hours * 3600,
        detect_s=usual.detect_s if given.detect is None else given.detect,
        restart_s=usual.restart_s if given.restart is None else given.restart,
        seed=given.seed,
    )


def _profile_failures(given: ProperOptions, profile: Profile) -> FailureFigures:
    recovery = profile.recovery
    usual = FailureFigures(detect_s=recovery.detect_s, restart_s=recovery.restart_s)
    return _failures(given, usual)


def _check_fit(deployment: Deployment, profile: Profile, load: Load, usable_share: float) -> None:
    """Against the longest of a trace; of a distribution a sample shows it, lengths are few."""
    seen = arrivals(load) if load.is_trace else islice(arrivals(load), 10_000)
    longest = max((arrival.prompt + arrival.output for arrival in seen), default=0)
    check_memory(deployment, profile, longest_context=longest, usable_share=usable_share)


def _play(
    given: ProperOptions, deployment: Deployment, load: Load, shared: Mapping[str, Any]
) -> Outcome:
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    tracer = Tracer(Path(shared["trace"]), clock=ManualClock()) if shared.get("trace") else None
    with interruptible(), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("requests", total=load.count)
        try:
            return simulate(
                deployment,
                load,
                router=given.router,
                processes=shared.get("workers"),
                tracer=tracer,
                on_progress=lambda count: bar.update(task, completed=count),
            )
        finally:
            if tracer is not None:
                tracer.close()


def _show(outcome: Outcome) -> None:
    console = Console()
    for line in summary_lines(outcome):
        console.print(line, highlight=False)
    table = Table(title="Seconds", title_justify="left")
    table.add_column("")
    for column in ("mean", "p50", "p95", "p99", "max"):
        table.add_column(column, justify="right")
    for row in latency_rows(outcome.tally):
        table.add_row(*row)
    console.print(table)
    stages = Table(title="Stages, averaged over the clusters", title_justify="left")
    for column in ("stage", "utilisation", "bubbles"):
        stages.add_column(column, justify="right")
    for stage, share in utilisation(outcome.tally, outcome.deployment).items():
        stages.add_row(stage, f"{share:.1%}", f"{1 - share:.1%}")
    console.print(stages)
