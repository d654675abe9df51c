"""The public ``simulate_all``: for each machine count the best colocated pipeline, the best
data-parallel one and the best disaggregated one, by exhaustive search over batch sizes and splits.

Its memory rule, its equal cutting of the trace and its costs are kept. Where the runs are executed,
and in which order, is ``compat_pool``'s business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dvrt.errors import ConfigError
from dvrt.planner.model_info import ModelInfo
from dvrt.simulator.compat_model import simulate_colocated, simulate_disaggregated
from dvrt.simulator.compat_work import check_time

MACHINE_COUNTS = (1, 2, 4, 6, 8, 10, 12, 14, 16)
MAX_LENGTHS = 256
PROMPT_CONTEXT, FULL_CONTEXT = 1000, 2000
SLOWEST_S = 1e9
METHODS = ("Baseline", "Baseline_dp", "DV")

WEIGHTS_GB: Mapping[str, int] = {
    "OPT-13B": 26,
    "OPT-30B": 60,
    "OPT-66B": 132,
    "OPT-175B": 350,
    "BLOOM-176B": 352,
}
TOKEN_KV_GB: Mapping[str, float] = {
    "OPT-13B": 0.00085,
    "OPT-30B": 0.001375,
    "OPT-66B": 0.00236,
    "OPT-175B": 0.00483,
    "BLOOM-176B": 0.004,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepInput:
    """One model's sweep. ``lengths`` are tokens a microbatch generates; memory is in GB a machine.

    Raises ConfigError for unknown models, negative numbers and machine counts below 1.
    """

    info: ModelInfo
    lengths: tuple[int, ...]
    memory_gb: float
    machine_cost: float = 0.0
    rps: float = 0.0
    machine_counts: tuple[int, ...] = MACHINE_COUNTS

    def __post_init__(self) -> None:
        if self.info.model not in WEIGHTS_GB:
            known = ", ".join(WEIGHTS_GB)
            raise ConfigError(f"the public sweep knows {known}, not {self.info.model!r}")
        for name in ("memory_gb", "machine_cost", "rps"):
            check_time(name, getattr(self, name))
        if not self.machine_counts or min(self.machine_counts) < 1:
            raise ConfigError(f"machine counts {self.machine_counts}: at least one machine each")
        if not self.lengths:
            raise ConfigError("the trace has no lengths")
        self._check_length()

    def _check_length(self) -> None:
        """ConfigError if a pipeline that fits would start without a microbatch on every stage."""
        for run in enumerate_runs(self):
            n_each = len(self.lengths) * (self.info.batch_sizes[-1] // run.batch) // run.ways
            if n_each < run.stages:
                raise ConfigError(
                    f"the trace has {len(self.lengths)} lengths, {n_each} microbatches for "
                    f"pipelines of {run.stages} stages at batch {run.batch} ({run.method}, "
                    f"{run.machines} machines); each needs one a stage"
                )

    def fits(self, stages: int, batch: int, context: int) -> bool:
        """One microbatch's whole-model KV beside one stage's weights, the latter in whole GB."""
        model = self.info.model
        weights_gb = math.ceil(WEIGHTS_GB[model] / stages)
        return weights_gb + TOKEN_KV_GB[model] * batch * context < self.memory_gb

    def repeated_lengths(self, batch: int) -> list[int]:
        """Each length as often as the largest batch size holds this one."""
        ratio = self.info.batch_sizes[-1] // batch
        return [length for length in self.lengths for _ in range(ratio)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun:
    """One configuration: ``ways`` pipelines, or one for prompts and one for tokens."""

    method: str
    machines: int
    stages: int
    batch: int
    ways: int = 1
    prompt_machines: int = 0

    @property
    def key(self) -> str:
        """A name unique within one sweep."""
        split = f"{self.prompt_machines}-{self.stages}" if self.prompt_machines else self.ways
        return f"{self.method}/{self.machines}/{split}/{self.batch}"

    def configuration(self) -> dict[str, int]:
        """The fields that the public JSON gives for this method."""
        if self.method == "DV":
            return {"pm": self.prompt_machines, "tm": self.stages, "bs": self.batch}
        if self.method == "Baseline_dp":
            return {"dp": self.ways, "pp": self.stages, "bs": self.batch}
        return {"bs": self.batch}


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """Seconds until all is generated, and stage visits simulated."""

    makespan_s: float
    visits: int


def enumerate_runs(given: SweepInput) -> Iterator[SweepRun]:
    """Every configuration that fits, in the order of the public search (ties go to the first)."""
    for machines in given.machine_counts:
        yield from _colocated_runs(given, machines, 1)
        for ways in range(2, machines + 1):
            if machines % ways == 0:
                yield from _colocated_runs(given, machines, ways)
        for prompt_machines in range(1, machines):
            yield from _split_runs(given, machines, prompt_machines)


def _colocated_runs(given: SweepInput, machines: int, ways: int) -> Iterator[SweepRun]:
    method = METHODS[ways > 1]
    stages = machines // ways
    for batch in given.info.batch_sizes:
        if given.fits(stages, batch, FULL_CONTEXT):
            yield SweepRun(method=method, machines=machines, stages=stages, batch=batch, ways=ways)


def _split_runs(given: SweepInput, machines: int, prompt_machines: int) -> Iterator[SweepRun]:
    stages = machines - prompt_machines
    for batch in given.info.batch_sizes:
        if given.fits(prompt_machines, batch, PROMPT_CONTEXT) and given.fits(
            stages, batch, FULL_CONTEXT
        ):
            yield SweepRun(
                method="DV",
                machines=machines,
                stages=stages,
                batch=batch,
                prompt_machines=prompt_machines,
            )


def execute(given: SweepInput, run: SweepRun) -> RunOutcome:
    """Simulate one configuration; of data-parallel parts of the trace the slowest counts."""
    at = given.info.batch_sizes.index(run.batch)
    prompt_ms, token_ms = given.info.prompt_ms[at], given.info.token_ms[at]
    lengths = given.repeated_lengths(run.batch)
    if run.method == "DV":
        result = simulate_disaggregated(
            lengths,
            prompt_machines=run.prompt_machines,
            token_machines=run.stages,
            prompt_time_ms=prompt_ms / run.prompt_machines,
            token_time_ms=token_ms / run.stages,
            cache_time_ms=0.0,
            rps=given.rps,
        )
        return RunOutcome(result.makespan_s, result.visits)
    return _execute_parts(given, run, lengths, prompt_ms / run.stages, token_ms / run.stages)


def _execute_parts(
    given: SweepInput, run: SweepRun, lengths: list[int], prompt_ms: float, token_ms: float
) -> RunOutcome:
    size = len(lengths) // run.ways
    results = [
        simulate_colocated(
            lengths[part * size : (part + 1) * size],
            machines=run.stages,
            prompt_time_ms=prompt_ms,
            token_time_ms=token_ms,
            rps=given.rps,
        )
        for part in range(run.ways)
    ]
    slowest_s = max(result.makespan_s for result in results)
    return RunOutcome(slowest_s, sum(result.visits for result in results))


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The fastest configuration of one method on so many machines; None when nothing fits."""

    method: str
    machines: int
    run: SweepRun | None = None
    makespan_s: float = 0.0
    cost: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As the public JSON has it: zeros when nothing fits."""
        run = self.run or SweepRun(
            method=self.method, machines=self.machines, stages=0, batch=0, ways=0
        )
        return run.configuration() | {"total_time": self.makespan_s, "cost": self.cost}


def choose_best(given: SweepInput, outcomes: Mapping[SweepRun, RunOutcome]) -> list[list[Best]]:
    """For each machine count the best of the three methods, from all outcomes."""
    return [
        [_best(given, outcomes, method, machines) for method in METHODS]
        for machines in given.machine_counts
    ]


def _best(
    given: SweepInput, outcomes: Mapping[SweepRun, RunOutcome], method: str, machines: int
) -> Best:
    runs = [
        run
        for run, outcome in outcomes.items()
        if (run.method, run.machines) == (method, machines) and outcome.makespan_s < SLOWEST_S
    ]
    if not runs:
        return Best(method=method, machines=machines)
    fastest = min(runs, key=lambda run: outcomes[run].makespan_s)
    makespan_s = outcomes[fastest].makespan_s
    return Best(
        method=method,
        machines=machines,
        run=fastest,
        makespan_s=makespan_s,
        cost=(makespan_s / 3600) * machines * given.machine_cost,
    )
