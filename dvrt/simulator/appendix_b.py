"""The paper's Appendix B with the shipped derived profiles: three models, 1 to 16 machines.

The paper's own profiles and trace are not public: lengths are lognormal with mean 210 and a
coefficient of variation of 1, clipped to [2, 1000], and step times come from peak rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dvrt.planner.imports import model_info_of
from dvrt.planner.profile import open_profile
from dvrt.planner.workload import lognormal_workload
from dvrt.simulator.compat_sweep import MAX_LENGTHS, SweepInput

BATCHES = (4, 8, 16, 32)
PROMPT_LENGTH, MEAN_OUTPUT = 1000, 210
CLIP = (2, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One figure of Appendix B: a model on machines of some GPUs, dollars an hour each."""

    figure: str
    profile: str
    gpus: int
    memory_gb: int
    machine_cost: float


SCENARIOS: Mapping[str, Scenario] = {
    "OPT-66B": Scenario(
        figure="Figure 17", profile="opt-66b-a100-80", gpus=4, memory_gb=320, machine_cost=18.52
    ),
    "OPT-30B": Scenario(
        figure="Figure 18", profile="opt-30b-v100-16", gpus=4, memory_gb=64, machine_cost=8.0
    ),
    "BLOOM-176B": Scenario(
        figure="Figure 19", profile="bloom-176b-a100-80", gpus=4, memory_gb=320, machine_cost=18.52
    ),
}


def appendix_b_input(model: str, *, rps: float = 0.0) -> SweepInput:
    """The sweep of one of SCENARIOS' models, as the public ``simulate_all`` would get it."""
    scenario = SCENARIOS[model]
    workload = lognormal_workload(PROMPT_LENGTH, MEAN_OUTPUT, clip=CLIP)
    profile = open_profile(scenario.profile).with_gpus(scenario.gpus)
    info = model_info_of(
        profile,
        batches=BATCHES,
        prompt_length=PROMPT_LENGTH,
        context=workload.mean_context,
    )
    lengths = tuple(output for _, output in workload.lengths[:MAX_LENGTHS])
    return SweepInput(
        info=info,
        lengths=lengths,
        memory_gb=scenario.memory_gb,
        machine_cost=scenario.machine_cost,
        rps=rps,
    )
