"""The ways to use D machines: every split that is worth costing, without asking what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dvrt.errors import ConfigError

COLOCATED = "colocated"
DATA_PARALLEL = "data-parallel"
CHUNKED = "chunked"
DISAGGREGATED = "disaggregated"
FAMILIES = (COLOCATED, DATA_PARALLEL, CHUNKED, DISAGGREGATED)
CHUNKS = (64, 128, 256, 512)
MAX_REPLICAS = 2
DEVICE_SLOTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """``groups`` equal pipelines; each has ``stages``, and ``prompt_stages`` more if disaggregated.

    ``batch`` is the rows of a microbatch, ``prompt_batch`` that of the prompt side. ``chunk`` is
    the tokens of a prompt chunk in a step, 0 for whole prompts. With ``swap`` the device holds two
    microbatches. Stages of one group keep ``replicas`` copies of each other's KV in host memory.
    """

    family: str
    groups: int
    stages: int
    batch: int
    prompt_stages: int = 0
    prompt_batch: int = 0
    chunk: int = 0
    swap: bool = False
    replicas: int = 0

    @property
    def group_machines(self) -> int:
        return self.stages + self.prompt_stages

    @property
    def machines(self) -> int:
        """Machines in use; the rest of D stays idle."""
        return self.groups * self.group_machines

    @property
    def microbatches(self) -> int:
        """In flight on the token side of each group."""
        return self.stages

    @property
    def prompt_microbatches(self) -> int:
        """In flight on the prompt side of each group."""
        return self.prompt_stages

    @property
    def device_slots(self) -> int:
        """Microbatches whose KV a token stage's device holds."""
        return min(DEVICE_SLOTS, self.stages) if self.swap else self.stages

    def in_groups(self, groups: int) -> Split:
        """The same pipeline another number of times."""
        family = self.family
        if family in (COLOCATED, DATA_PARALLEL):
            family = DATA_PARALLEL if groups > 1 else COLOCATED
        return replace(self, groups=groups, family=family)

    def describe(self) -> str:
        """A short name, such as ``2 x (1-3) batch 8/4 swap r1``."""
        shape = f"{self.prompt_stages}-{self.stages}" if self.prompt_stages else f"{self.stages}"
        if self.groups > 1:
            shape = f"{self.groups} x ({shape})"
        batch = f"{self.prompt_batch}/{self.batch}" if self.prompt_stages else f"{self.batch}"
        parts = [self.family, shape, f"batch {batch}"]
        parts += [f"chunk {self.chunk}"] if self.chunk else []
        parts += ["swap"] if self.swap else []
        parts += [f"r{self.replicas}"] if self.replicas else []
        return " ".join(parts)


def enumerate_splits(
    machines: int,
    *,
    layers: int,
    batches: Sequence[int],
    families: Sequence[str] = FAMILIES,
    swap: bool | None = None,
    replicas: Sequence[int] = (0, 1, MAX_REPLICAS),
) -> Iterator[Split]:
    """Every split of at most ``machines`` machines, no stage without a layer.

    ``swap`` None means with and without. Raises ConfigError for no machines or unknown families.
    """
    if machines < 1:
        raise ConfigError(f"{machines} machines; a plan needs at least one")
    if unknown := sorted(set(families) - set(FAMILIES)):
        raise ConfigError(f"unknown families {unknown}; known are {', '.join(FAMILIES)}")
    if not batches or min(batches) < 1:
        raise ConfigError(f"batch sizes {tuple(batches)}: at least one, each at least 1")
    for shape in _shapes(machines, layers):
        for split in _batched(*shape, batches):
            if split.family in families:
                yield from _options(split, swap, replicas)


def _shapes(machines: int, layers: int) -> Iterator[tuple[int, int, int]]:
    """(groups, prompt stages, stages) of all splits, as many groups as the machines make.

    Every way to use all machines in one group is there. Beyond that a depth counts only if it
    makes the fullest stage smaller than the next shorter one does: else the shorter pipeline has
    the same step times, needs no more memory, and leaves machines for others.
    """
    depths = useful_depths(min(machines, layers), layers)
    for stages in sorted({*depths, min(machines, layers)}):
        yield machines // stages, 0, stages
    pairs = {(prompt, stages) for prompt in depths for stages in depths}
    pairs |= {(prompt, machines - prompt) for prompt in range(1, machines)}
    for prompt, stages in sorted(pairs):
        if prompt + stages <= machines and max(prompt, stages) <= layers:
            yield machines // (prompt + stages), prompt, stages


def useful_depths(deepest: int, layers: int) -> list[int]:
    """Depths up to ``deepest`` at which the fullest stage has fewer layers than one before."""
    depths = [1]
    for depth in range(2, deepest + 1):
        if math.ceil(layers / depth) < math.ceil(layers / depths[-1]):
            depths.append(depth)
    return depths


def _batched(
    groups: int, prompt_stages: int, stages: int, batches: Sequence[int]
) -> Iterator[Split]:
    for batch in batches:
        if prompt_stages:
            for prompt_batch in batches:
                yield Split(
                    family=DISAGGREGATED,
                    groups=groups,
                    stages=stages,
                    batch=batch,
                    prompt_stages=prompt_stages,
                    prompt_batch=prompt_batch,
                )
            continue
        family = DATA_PARALLEL if groups > 1 else COLOCATED
        yield Split(family=family, groups=groups, stages=stages, batch=batch)
        for chunk in CHUNKS:
            yield Split(family=CHUNKED, groups=groups, stages=stages, batch=batch, chunk=chunk)


def _options(split: Split, swap: bool | None, replicas: Sequence[int]) -> Iterator[Split]:
    """With and without swapping and replicas, where these mean anything.

    With one or two stages the device's two slots are all there are; a ring of n stages can hold
    at most n - 1 replicas.
    """
    for swaps in (False, True) if swap is None else (swap,):
        if swaps and split.stages <= DEVICE_SLOTS:
            continue
        for count in replicas:
            if count < split.stages:
                yield replace(split, swap=swaps, replicas=count)
