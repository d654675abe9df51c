"""Does a split fit? Equations 1 and 2 in bytes and whole layers, and how much is missing if not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dvrt.extents import row_tokens
from dvrt.planner.profile import Profile
from dvrt.planner.split import Split
from dvrt.planner.workload import Workload

LONGER_CHUNK = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes that the fullest machine of one role needs, against what it may use."""

    role: str
    weight_bytes: int
    kv_bytes: int
    available_bytes: int

    @property
    def needed_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes

    @property
    def missing_bytes(self) -> int:
        return max(0, self.needed_bytes - self.available_bytes)

    def describe(self) -> str:
        """What is needed, of what, and what is missing, in GB."""
        parts = f"{_gb(self.weight_bytes)} weights + {_gb(self.kv_bytes)} KV"
        text = (
            f"{self.role} needs {_gb(self.needed_bytes)} ({parts}) of {_gb(self.available_bytes)}"
        )
        return f"{text}: {_gb(self.missing_bytes)} missing" if self.missing_bytes else text


def memory_needs(
    profile: Profile, workload: Workload, split: Split, *, usable_share: float = 1.0
) -> tuple[MemoryNeed, ...]:
    """Device and host needs of each role; ``usable_share`` of the device is for weights and KV.

    A row's KV is reserved as ``launch`` does it, for the longest context of the workload on prompt
    machines, too. Host memory holds all microbatches when swapping, and the neighbours' replicas.
    """
    model, machine = profile.model, profile.machine
    row = row_bytes(profile, workload, split)
    usable_bytes = int(machine.memory_bytes * usable_share)
    stage_layers = math.ceil(model.layers / split.stages)
    ends = model.ends_bytes(split.stages)
    microbatch = split.batch * row * stage_layers
    host_copies = split.microbatches * (split.replicas + (1 if split.swap else 0))
    token = MemoryNeed(
        role="a token machine" if split.prompt_stages else "a machine",
        weight_bytes=stage_layers * model.layer_weight_bytes + ends,
        kv_bytes=split.device_slots * microbatch,
        available_bytes=usable_bytes,
    )
    host = MemoryNeed(
        role="the host of " + token.role,
        weight_bytes=0,
        kv_bytes=host_copies * microbatch,
        available_bytes=machine.host_memory_bytes,
    )
    return (token, host, *_prompt_needs(profile, split, usable_bytes, row))


def _prompt_needs(
    profile: Profile, split: Split, usable_bytes: int, row: int
) -> tuple[MemoryNeed, ...]:
    if not split.prompt_stages:
        return ()
    model = profile.model
    layers = math.ceil(model.layers / split.prompt_stages)
    return (
        MemoryNeed(
            role="a prompt machine",
            weight_bytes=layers * model.layer_weight_bytes + model.ends_bytes(split.prompt_stages),
            kv_bytes=split.prompt_microbatches * split.prompt_batch * row * layers,
            available_bytes=usable_bytes,
        ),
    )


def row_bytes(profile: Profile, workload: Workload, split: Split) -> int:
    """What one row's KV takes in one layer."""
    chunk = chunk_tokens(profile, workload, split)
    return row_tokens(workload.longest_context, chunk) * profile.model.kv_bytes_per_token


def chunk_tokens(profile: Profile, workload: Workload, split: Split) -> int:
    """The split's own chunks of prompts; else as the profile's were measured, or whole prompts.

    Rows are made of whole chunks. So those of whole prompts are up to a quarter longer than the
    longest one, if that makes the chunks of a row fewer.
    """
    if split.chunk or profile.chunk_tokens:
        return split.chunk or profile.chunk_tokens
    prompt, context = workload.longest_prompt, workload.longest_context
    longer = math.ceil(context / (context // prompt))
    return longer if longer <= LONGER_CHUNK * prompt else prompt


def missing_bytes(needs: tuple[MemoryNeed, ...]) -> int:
    """The largest shortfall on any one machine; 0 when all fits."""
    return max(need.missing_bytes for need in needs)


def least_machines(profile: Profile, workload: Workload, *, usable_share: float) -> int | None:
    """The shortest pipeline that holds the model, one row a microbatch, swapping if that helps.

    None when no pipeline of at most one stage a layer does.
    """
    for stages in range(1, profile.model.layers + 1):
        for swap in (False, True):
            split = Split(family="colocated", groups=1, stages=stages, batch=1, swap=swap)
            if not missing_bytes(memory_needs(profile, workload, split, usable_share=usable_share)):
                return stages
    return None


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
