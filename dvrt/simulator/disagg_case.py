"""The paper's case for disaggregation, as one set-up for the runtime, the simulator and the model.

Machines of two A100-80, microbatches of 8, prompts of 1000, lognormal outputs of mean 210, step
times from half of the peak for prompts and 70 % of the bandwidth for tokens (its Figure 8).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from dvrt.models.null_timing import NullTiming
from dvrt.planner.profile import open_profile
from dvrt.simulator.arrivals import Arrival, Load, arrivals
from dvrt.simulator.deploy import Setup, deploy_profile
from dvrt.simulator.deployment import Deployment, LineFigures, LinkFigures
from dvrt.simulator.rates import Requests

MICROBATCH = 8
PROMPT = 1000
OUTPUTS = "output=210,cv=1,longest=1000"
CHUNK = 256
N_REQUESTS = 1500
DECODE_FIELDS = ("decode_s", "decode_row_s", "decode_entry_s")
PROMPT_FIELDS = ("chunk_s", "prompt_token_s", "prompt_entry_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggregationCase:
    """A model on so many machines, split for prompts and tokens."""

    profile: str
    prompt_stages: int
    token_stages: int
    gpus: int = 2

    @property
    def machines(self) -> int:
        return self.prompt_stages + self.token_stages


CASES: Mapping[str, DisaggregationCase] = {
    "opt66b_4": DisaggregationCase(profile="opt-66b-a100-80", prompt_stages=1, token_stages=3),
    "bloom176b_7": DisaggregationCase(
        profile="bloom-176b-a100-80", prompt_stages=3, token_stages=4
    ),
}


def colocated(case: DisaggregationCase, *, network: float = math.inf) -> Deployment:
    """The paper's baseline: one pipeline, whole prompts, rows refilled at once."""
    setup = Setup(
        stages=case.machines,
        microbatches=case.machines,
        batch=MICROBATCH,
        chunk_tokens=PROMPT,
        chunks_per_step=MICROBATCH,
    )
    return _deploy(case, setup, network)


def chunked(case: DisaggregationCase, *, network: float = math.inf) -> Deployment:
    """One pipeline in which each step carries one chunk of a prompt beside its tokens."""
    setup = Setup(
        stages=case.machines,
        microbatches=case.machines,
        batch=MICROBATCH,
        chunk_tokens=CHUNK,
        chunks_per_step=1,
    )
    return _deploy(case, setup, network)


def disaggregated(case: DisaggregationCase, *, network: float = math.inf) -> Deployment:
    """Prompts one by one through their stages: each fills them, so that packing only delays."""
    setup = Setup(
        stages=case.token_stages,
        prompt_stages=case.prompt_stages,
        batch=MICROBATCH,
        prompt_batch=1,
        microbatches=case.token_stages,
        prompt_microbatches=case.prompt_stages + 1,
        chunk_tokens=PROMPT,
        chunks_per_step=1,
    )
    return _deploy(case, setup, network)


def case_load(rate_per_s: float, *, count: int = N_REQUESTS, seed: int = 42) -> Load:
    """The requests of the case, Poisson by request."""
    source = f"prompt={PROMPT},{OUTPUTS}"
    return Load(source=source, count=count, rate_per_s=rate_per_s, seed=seed)


def case_requests(*, count: int = N_REQUESTS, seed: int = 42) -> Requests:
    """The same at any rate."""

    def requests(rate_per_s: float) -> Iterator[Arrival]:
        return arrivals(case_load(rate_per_s, count=count, seed=seed))

    return requests


def scaled(deployment: Deployment, *, prompts: float = 1.0, tokens: float = 1.0) -> Deployment:
    """The same with other step times, for the sensitivity to them."""
    factors = dict.fromkeys(PROMPT_FIELDS, prompts) | dict.fromkeys(DECODE_FIELDS, tokens)
    return replace(
        deployment,
        tokens=_scaled_line(deployment.tokens, factors),
        prompts=None if deployment.prompts is None else _scaled_line(deployment.prompts, factors),
    )


def _scaled_line(line: LineFigures, factors: Mapping[str, float]) -> LineFigures:
    def timing(given: NullTiming) -> NullTiming:
        return replace(given, **{name: getattr(given, name) * by for name, by in factors.items()})

    stages = tuple(replace(stage, timing=timing(stage.timing)) for stage in line.stages)
    return replace(line, stages=stages)


def _deploy(case: DisaggregationCase, setup: Setup, network: float) -> Deployment:
    profile = open_profile(case.profile).with_gpus(case.gpus)
    deployment = deploy_profile(setup, profile)
    return replace(deployment, links=LinkFigures(network=network))
