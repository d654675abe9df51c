"""``dvrt simulate``: a deployment over a trace, or the public simulators' runs and their sweep."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from dvrt.cli.parameters import with_options
from dvrt.cli.places import check_places
from dvrt.cli.signals import interruptible
from dvrt.cli.simulate_proper import ProperOptions, simulate_proper
from dvrt.errors import ConfigError
from dvrt.options import make_options, option
from dvrt.planner.model_info import read_model_info
from dvrt.simulator.appendix_b import SCENARIOS, appendix_b_input
from dvrt.simulator.compat_chrome import VisitTrace
from dvrt.simulator.compat_model import CompatResult, simulate_colocated, simulate_disaggregated
from dvrt.simulator.compat_pool import PartialSweep, run_sweep
from dvrt.simulator.compat_report import (
    PAPER_SPEED_UPS,
    draw_sweep,
    speed_ups,
    sweep_to_json,
    write_outputs,
)
from dvrt.simulator.compat_sweep import MAX_LENGTHS, METHODS, Best, SweepInput, choose_best
from dvrt.simulator.compat_work import read_lengths

MEMORY_GB = 80.0
BESIDE_CSV = (".json", ".partial")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """One run of a public simulator, or with ``sweep`` its search. Times in milliseconds."""

    requests: str | None = option(None, help="JSON list of [prompt_size, generated_tokens]")
    machines: int | None = option(None, help="stages of a colocated pipeline")
    prompt_machines: int | None = option(None, help="stages for prompts, if apart")
    token_machines: int | None = option(None, help="stages for tokens, if apart")
    prompt_time: float = option(1.0, help="of a microbatch on a stage", unit="ms", low=0.0)
    token_time: float = option(1.0, help="of a microbatch on a stage", unit="ms", low=0.0)
    cache_time: float = option(1.0, help="of moving a microbatch's KV", unit="ms", low=0.0)
    rps: float = option(0.0, help="groups of microbatches a second; 0: all there", low=0.0)
    trace: str | None = option(None, help="write a Chrome trace of the run to this file")
    sweep: bool = option(False, help="search all splits of 1 to 16 machines")
    model: str | None = option(None, help="the sweep's model; without files, one of Appendix B")
    config_file: str | None = option(None, help="model_info.json with the sweep's step times")
    mem_per_machine: float | None = option(
        None, help="device memory", unit="GB", low=0.0, otherwise="80, or Appendix B's"
    )
    machine_cost: float | None = option(
        None, help="dollars an hour", low=0.0, otherwise="0, or Appendix B's"
    )
    output_csv: str | None = option(None, help="the sweep's results; JSON goes beside it")
    plot: str | None = option(None, help="draw the sweep to this file")
    workers: int | None = option(None, help="processes of the sweep", otherwise="cores", low=1)

    def check(self) -> None:
        """Raise ConfigError for options that do not make one run, or do nothing in it."""
        if self.sweep:
            if self.output_csv is not None and Path(self.output_csv).suffix in BESIDE_CSV:
                raise ConfigError(
                    f"output_csv is {self.output_csv}; the sweep writes {', '.join(BESIDE_CSV)} "
                    "beside the CSV, so it needs another suffix"
                )
            if self.model is None:
                raise ConfigError("a sweep needs --model")
            if (self.config_file is None) != (self.requests is None):
                raise ConfigError("a sweep needs both --config-file and --requests, or neither")
            return
        for name in ("output_csv", "plot", "workers", "mem_per_machine", "machine_cost"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name} is {getattr(self, name)}; it needs sweep")
        apart = (self.prompt_machines, self.token_machines)
        is_apart = apart != (None, None)
        if (self.machines is None) != is_apart or (is_apart and None in apart):
            raise ConfigError("give --machines, or both --prompt-machines and --token-machines")
        if self.requests is None:
            raise ConfigError("requests is missing; a file with [prompt_size, generated_tokens]")


@with_options(options=SimulateOptions, deployment=ProperOptions)
def simulate(
    *,
    compat: Annotated[
        bool, typer.Option("--compat", help="as the public simulators do; so without a profile")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    options: dict[str, Any],
    deployment: dict[str, Any],
) -> None:
    """Simulate a deployment, or sweep over all splits of 1 to 16 machines.

    With --profile or --null-timing the runtime's own scheduler decides; without them this is what
    the public simulators do.
    """
    if "profile" in deployment or "null_timing" in deployment:
        if compat:
            raise ConfigError("--compat has no profile; its times are --prompt-time, --token-time")
        simulate_proper(deployment, options, as_json=json)
        return
    if deployment:
        raise ConfigError(f"{min(deployment)} needs --profile or --null-timing")
    given = make_options(SimulateOptions, options)
    check_places(options, ("trace", "plot", "output_csv"))
    if given.sweep:
        _sweep(given, as_json=json)
        return
    result = _run(given)
    if json:
        print(json_format.dumps(asdict(result) | {"median_latency_s": result.median_latency_s}))
        return
    print("\n".join(result.lines()))


def _run(given: SimulateOptions) -> CompatResult:
    lengths = read_lengths(Path(given.requests or ""))
    trace = VisitTrace(prompt_machines=given.prompt_machines or 0) if given.trace else None
    if given.machines is not None:
        result = simulate_colocated(
            lengths,
            machines=given.machines,
            prompt_time_ms=given.prompt_time,
            token_time_ms=given.token_time,
            rps=given.rps,
            on_visit=trace,
        )
    else:
        result = simulate_disaggregated(
            lengths,
            prompt_machines=given.prompt_machines or 0,
            token_machines=given.token_machines or 0,
            prompt_time_ms=given.prompt_time,
            token_time_ms=given.token_time,
            cache_time_ms=given.cache_time,
            rps=given.rps,
            on_visit=trace,
        )
    if trace is not None and given.trace:
        trace.write(Path(given.trace))
    return result


def sweep_input(given: SimulateOptions) -> SweepInput:
    """From the files, or the shipped derived profiles of Appendix B."""
    model = given.model or ""
    if given.config_file is None or given.requests is None:
        if model not in SCENARIOS:
            known = ", ".join(SCENARIOS)
            raise ConfigError(f"model is {model!r}; without --config-file one of {known}")
        return _as_given(given, appendix_b_input(model, rps=given.rps))
    swept = SweepInput(
        info=read_model_info(Path(given.config_file), model),
        lengths=tuple(read_lengths(Path(given.requests), MAX_LENGTHS)),
        memory_gb=MEMORY_GB,
        rps=given.rps,
    )
    return _as_given(given, swept)


def _as_given(given: SimulateOptions, swept: SweepInput) -> SweepInput:
    """With the memory and the price that were given."""
    memory_gb, cost = given.mem_per_machine, given.machine_cost
    return replace(
        swept,
        memory_gb=swept.memory_gb if memory_gb is None else memory_gb,
        machine_cost=swept.machine_cost if cost is None else cost,
    )


def _sweep(given: SimulateOptions, *, as_json: bool) -> None:
    swept = sweep_input(given)
    csv_path = Path(given.output_csv) if given.output_csv else None
    partial = PartialSweep(csv_path.with_suffix(".partial"), swept) if csv_path else None
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with interruptible(), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{swept.info.model} sweep", total=None)
        outcomes = run_sweep(
            swept,
            workers=given.workers,
            partial=partial,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    rows = choose_best(swept, outcomes)
    if csv_path:
        write_outputs(csv_path, rows)
    if partial:
        partial.remove()
    if given.plot:
        title = f"{swept.info.model}, {swept.memory_gb:g} GB a machine"
        draw_sweep(rows, Path(given.plot), title=title, machine_cost=swept.machine_cost)
    if as_json:
        print(json_format.dumps(sweep_to_json(rows)))
        return
    _show_sweep(rows, swept)


def _show_sweep(rows: Sequence[Sequence[Best]], swept: SweepInput) -> None:
    table = Table(title=f"{swept.info.model}: makespan in s, configuration, dollars")
    table.add_column("machines", justify="right")
    for method in METHODS:
        table.add_column(method)
    for row in rows:
        table.add_row(str(row[0].machines), *map(_cell, row))
    console = Console()
    console.print(table)
    ours, paper = asdict(speed_ups(rows)), asdict(PAPER_SPEED_UPS)
    for name, ratio in ours.items():
        shown = "-" if ratio is None else f"{ratio:.2f}"
        console.print(f"{name.replace('_', ' ')}: {shown} (paper, over its models: {paper[name]})")


def _cell(best: Best) -> str:
    if best.run is None:
        return "does not fit"
    shape = " ".join(f"{key}{value}" for key, value in best.run.configuration().items())
    return f"{best.makespan_s:.1f} ({shape}, ${best.cost:.1f})"
