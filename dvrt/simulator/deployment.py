"""What is simulated: pipelines of stages, their times, links, swapping, replicas and failures.

Only figures; how they come about from a profile is ``deploy``'s.
"""

from __future__ import annotations

import math

from dvrt.control.pipeline import PipelinePlan, PipelineShape, Purpose
from dvrt.errors import ConfigError
from dvrt.models.null_timing import NullTiming
from dvrt.wire import message

PROMPTS, TOKENS = 0, 1
"""Ids of the pipelines; the prompts' one is there only where they are apart."""


@message("simulator.stage")
class StageFigures:
    """One stage: its layers [first, last), its step times, and the load of its weights.

    ``step_s`` is what every step costs it beside what is computed; ``draw_s`` what a prompt's first
    token costs, drawn from logits of its own.
    """

    first: int
    last: int
    timing: NullTiming
    load_s: float = 0.0
    step_s: float = 0.0
    draw_s: float = 0.0

    @property
    def layers(self) -> int:
        return self.last - self.first

    def overlap(self, other: StageFigures) -> int:
        """Layers that both have."""
        return max(0, min(self.last, other.last) - max(self.first, other.first))


@message("simulator.line")
class LineFigures:
    """One pipeline: stages, and the shape that the scheduler drives."""

    stages: tuple[StageFigures, ...]
    n_microbatches: int
    batch_size: int
    chunk_tokens: int
    chunks_per_step: int

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("a pipeline needs a stage")
        if self.n_microbatches < len(self.stages):
            raise ConfigError(
                f"{self.n_microbatches} microbatches; {len(self.stages)} stages need one each"
            )
        try:
            self.shape()
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def shape(self) -> PipelineShape:
        return PipelineShape(
            n_stages=len(self.stages),
            n_microbatches=self.n_microbatches,
            batch_size=self.batch_size,
            chunk_tokens=self.chunk_tokens,
            chunks_per_step=self.chunks_per_step,
        )


@message("simulator.links")
class LinkFigures:
    """Bytes a second in one direction, and ``latency_s`` of any message between two machines."""

    network: float = math.inf
    host_to_device: float = math.inf
    device_to_host: float = math.inf
    restore: float = math.inf
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("network", "host_to_device", "device_to_host", "restore"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; above 0 bytes a second")
        if not 0 <= self.latency_s < math.inf:
            raise ConfigError(f"latency_s is {self.latency_s}; a finite number from 0 on")


@message("simulator.failure")
class Failure:
    """Machine ``machine`` of cluster ``cluster`` stops at ``at_s``; prompt machines come first."""

    at_s: float
    machine: int
    cluster: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.at_s < math.inf and self.machine >= 0 and self.cluster >= 0):
            raise ConfigError(f"failure of machine {self.machine} at {self.at_s} s: from 0 on")


@message("simulator.failures")
class FailureFigures:
    """Which machines stop when, and what it takes to replace one.

    Besides those ``given``, each machine fails with ``mtbf_s`` between two failures on average
    (exponential). A loss is noticed ``detect_s`` later, and a replacement starts within
    ``restart_s``, then loads its weights.
    """

    given: tuple[Failure, ...] = ()
    mtbf_s: float | None = None
    detect_s: float = 0.5
    restart_s: float = 10.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("detect_s", "restart_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; a finite number from 0 on")
        if self.mtbf_s is not None and not 0 < self.mtbf_s < math.inf:
            raise ConfigError(f"mtbf_s is {self.mtbf_s}; it must be above 0")


@message("simulator.deployment")
class Deployment:
    """``clusters`` equal clusters, each on machines of its own, one a stage.

    ``prompts`` is a pipeline of its own for prompts, None where ``tokens`` does both. With
    ``device_slots`` a token stage keeps only so many microbatches on its device. Each stage keeps
    ``replicas`` copies of its logs at the next ones. ``price_per_hour`` is a machine's.
    """

    tokens: LineFigures
    prompts: LineFigures | None = None
    clusters: int = 1
    links: LinkFigures = LinkFigures()
    device_slots: int | None = None
    replicas: int = 0
    failures: FailureFigures = FailureFigures()
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise ConfigError(f"{self.clusters} clusters; at least 1")
        if self.device_slots is not None and self.device_slots < 2:
            raise ConfigError(f"device_slots is {self.device_slots}; at least 2")
        if not 0 <= self.replicas < self.cluster_machines:
            raise ConfigError(
                f"{self.replicas} replicas; a ring of {self.cluster_machines} machines holds at "
                f"most {self.cluster_machines - 1}"
            )
        for each in self.failures.given:
            if each.machine >= self.cluster_machines or each.cluster >= self.clusters:
                raise ConfigError(
                    f"machine {each.machine} of cluster {each.cluster} cannot fail: there are "
                    f"{self.clusters} clusters of {self.cluster_machines}"
                )

    @property
    def lines(self) -> tuple[tuple[int, LineFigures], ...]:
        """The pipelines of a cluster by id, the prompts' one first."""
        tokens = ((TOKENS, self.tokens),)
        return tokens if self.prompts is None else ((PROMPTS, self.prompts), *tokens)

    @property
    def cluster_machines(self) -> int:
        return sum(len(line.stages) for _, line in self.lines)

    @property
    def machines(self) -> int:
        return self.clusters * self.cluster_machines

    def needs_times(self, line: int) -> bool:
        """Whether it matters when each stage of a pipeline computes what."""
        fails = bool(self.failures.given) or self.failures.mtbf_s is not None
        takes_logs = self.prompts is not None and self.links.latency_s > 0
        return line == PROMPTS or fails or self.replicas > 0 or takes_logs

    def plans(self) -> list[PipelinePlan]:
        """As the scheduler takes them."""
        alone = self.prompts is None
        purposes = {PROMPTS: Purpose.PROMPT, TOKENS: Purpose.BOTH if alone else Purpose.TOKEN}
        return [
            PipelinePlan(id=key, purpose=purposes[key], shape=line.shape())
            for key, line in self.lines
        ]
