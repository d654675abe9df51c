"""Deployments from a profile of a model on a machine, or from the null device's fixed times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dvrt.errors import ConfigError
from dvrt.extents import row_tokens
from dvrt.models.null_timing import NullTiming
from dvrt.models.split import split_evenly
from dvrt.planner.memory import MemoryNeed
from dvrt.planner.parts import RuntimeFigures
from dvrt.planner.profile import Profile
from dvrt.simulator.deployment import (
    Deployment,
    FailureFigures,
    LineFigures,
    LinkFigures,
    StageFigures,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is to be deployed, as ``launch`` takes it; ``clusters`` of it side by side.

    None leaves the runtime's default: one microbatch more than stages, prompts in microbatches of
    the tokens' size. ``device_slots`` None is without swapping.
    """

    stages: int
    prompt_stages: int = 0
    clusters: int = 1
    batch: int = 8
    prompt_batch: int | None = None
    microbatches: int | None = None
    prompt_microbatches: int | None = None
    chunk_tokens: int = 64
    chunks_per_step: int = 2
    device_slots: int | None = None
    replicas: int = 0

    def __post_init__(self) -> None:
        for name in ("stages", "clusters", "batch", "chunk_tokens", "chunks_per_step"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1")
        if self.prompt_stages < 0:
            raise ConfigError(f"prompt_stages is {self.prompt_stages}; at least 0")
        if not self.prompt_stages and (self.prompt_batch or self.prompt_microbatches):
            raise ConfigError("prompt_batch and prompt_microbatches need prompt_stages")


def deploy_profile(
    setup: Setup,
    profile: Profile,
    *,
    failures: FailureFigures | None = None,
    price_per_hour: float | None = None,
) -> Deployment:
    """Stages of whole layers with the profile's times; its links, its recovery, its price.

    What the runtime costs is in it if the profile has it. Detection and restart times of
    ``failures`` None are the profile's for a machine that is lost. ConfigError for more stages than
    layers.
    """
    machine, recovery, runtime = profile.machine, profile.recovery, profile.runtime
    if price_per_hour is None:
        price_per_hour = machine.price_per_hour
    return _deployment(
        setup,
        lambda n_stages, batch: profile_stages(
            profile, n_stages, batch=batch, chunk_tokens=setup.chunk_tokens
        ),
        links=LinkFigures(
            network=machine.network,
            host_to_device=machine.host_to_device,
            device_to_host=machine.device_to_host,
            restore=profile.restore,
            latency_s=runtime.hop_s if runtime else machine.hop_s,
        ),
        ship_factor=runtime.ship_factor if runtime else 1.0,
        failures=failures
        or FailureFigures(detect_s=recovery.detect_s, restart_s=recovery.restart_s),
        price_per_hour=price_per_hour,
    )


def deploy_times(
    setup: Setup,
    timing: NullTiming,
    *,
    runtime: RuntimeFigures | None = None,
    links: LinkFigures | None = None,
    failures: FailureFigures | None = None,
    price_per_hour: float | None = None,
) -> Deployment:
    """Stages that all have the same fixed times, whatever pipeline they are in.

    Logs are cut as if the model had as many layers as all stages together, of equal size. What the
    ``runtime`` costs comes on top; it costs nothing where it is None, nor with ``links`` given.
    """
    n_layers = setup.stages * max(1, setup.prompt_stages)

    def stages(n_stages: int, batch: int) -> tuple[StageFigures, ...]:
        return tuple(
            StageFigures(
                first=first,
                last=last,
                timing=served(timing, runtime, n_stages),
                load_s=timing.load_s,
                step_s=runtime.step_s if runtime else 0.0,
            )
            for first, last in split_evenly(n_layers, n_stages)
        )

    return _deployment(
        setup,
        stages,
        links=links or LinkFigures(latency_s=runtime.hop_s if runtime else 0.0),
        ship_factor=runtime.ship_factor if runtime else 1.0,
        failures=failures or FailureFigures(),
        price_per_hour=price_per_hour,
    )


def profile_stages(
    profile: Profile, n_stages: int, *, batch: int, chunk_tokens: int, exact: bool | None = None
) -> tuple[StageFigures, ...]:
    """The model cut as the runtime cuts it; the last stage has the head.

    ``exact`` None is as the runtime was measured.

    First tokens have a draw of their own where the runtime was measured; else a step has the head
    once at most.
    """
    runtime, layers = profile.runtime, profile.model.layers
    stages = []
    for first, last in split_evenly(layers, n_stages):
        timing = stage_timing(profile, last - first, has_head=last == layers)
        if runtime is not None and runtime.is_exact if exact is None else exact:
            timing = padded(timing, batch, chunk_tokens)
        stages.append(
            StageFigures(
                first=first,
                last=last,
                timing=served(timing, runtime, n_stages),
                load_s=profile.load_s(last - first),
                step_s=runtime.step_s if runtime else 0.0,
                draw_s=profile.head_s(1) if runtime and last == layers else 0.0,
            )
        )
    return tuple(stages)


def served(timing: NullTiming, runtime: RuntimeFigures | None, n_stages: int) -> NullTiming:
    """The times of steps while a pipeline of so many stages serves, where what that costs was
    measured."""
    if runtime is None:
        return timing
    return timing.scaled(token=runtime.token_factor_of(n_stages), prompt=runtime.prompt_factor)


def padded(timing: NullTiming, batch: int, chunk_tokens: int) -> NullTiming:
    """Where all rows of a microbatch and all places of a chunk are computed, used or not."""
    return replace(
        timing,
        decode_s=timing.decode_s + batch * timing.decode_row_s,
        decode_row_s=0.0,
        chunk_s=timing.chunk_s + chunk_tokens * timing.prompt_token_s,
        prompt_token_s=0.0,
    )


def stage_timing(profile: Profile, layers: int, *, has_head: bool) -> NullTiming:
    """The profile's fits as times of a stage that are linear in what a step is made of.

    What every stage adds to a step counts once for its decodes and once for each chunk. A prompt's
    quadratic part counts the entries that its tokens read, half a square.
    """
    prompt = [layers * c for c in profile.prompt.coefficients]
    token = [layers * c for c in profile.token.coefficients]
    if profile.prompt_stage:
        prompt = [a + b for a, b in zip(prompt, profile.prompt_stage.coefficients, strict=True)]
    if profile.token_stage:
        token = [a + b for a, b in zip(token, profile.token_stage.coefficients, strict=True)]
    head = profile.head.coefficients if profile.head and has_head else (0.0, 0.0, 0.0, 0.0)
    return NullTiming(
        decode_s=token[0] + head[0],
        decode_row_s=token[1] + head[1],
        decode_entry_s=token[2],
        chunk_s=prompt[0] + prompt[1],
        prompt_token_s=prompt[2],
        prompt_entry_s=2 * prompt[3],
        entry_bytes=layers * profile.model.kv_bytes_per_token,
    )


def _deployment(
    setup: Setup,
    stages: Callable[[int, int], tuple[StageFigures, ...]],
    *,
    links: LinkFigures,
    ship_factor: float,
    failures: FailureFigures,
    price_per_hour: float | None,
) -> Deployment:
    prompts = None
    if setup.prompt_stages:
        prompt_batch = setup.prompt_batch or setup.batch
        prompts = LineFigures(
            stages=tuple(
                replace(stage, timing=stage.timing.scaled(prompt=ship_factor))
                for stage in stages(setup.prompt_stages, prompt_batch)
            ),
            n_microbatches=setup.prompt_microbatches or setup.prompt_stages + 1,
            batch_size=prompt_batch,
            chunk_tokens=setup.chunk_tokens,
            chunks_per_step=setup.chunks_per_step,
        )
    return Deployment(
        tokens=LineFigures(
            stages=stages(setup.stages, setup.batch),
            n_microbatches=setup.microbatches or setup.stages + 1,
            batch_size=setup.batch,
            chunk_tokens=setup.chunk_tokens,
            chunks_per_step=setup.chunks_per_step,
        ),
        prompts=prompts,
        clusters=setup.clusters,
        links=links,
        device_slots=setup.device_slots,
        replicas=setup.replicas,
        failures=failures,
        price_per_hour=price_per_hour,
    )


def check_memory(
    deployment: Deployment, profile: Profile, *, longest_context: int, usable_share: float
) -> None:
    """Raise ConfigError, with what is missing, if weights and logs do not fit the machines.

    Rows are reserved as ``launch`` does it; swapped logs and replicas are in host memory.
    """
    profile.model.check_context(longest_context)
    for need in _needs(deployment, profile, longest_context, usable_share):
        if need.missing_bytes:
            raise ConfigError(need.describe())


def _needs(
    deployment: Deployment, profile: Profile, longest_context: int, usable_share: float
) -> Iterator[MemoryNeed]:
    model, machine = profile.model, profile.machine
    for _, line in deployment.lines:
        is_tokens = line is deployment.tokens
        role = "a machine" if deployment.prompts is None else "a prompt machine"
        role = "a token machine" if is_tokens and deployment.prompts is not None else role
        layers = max(stage.layers for stage in line.stages)
        row = row_tokens(longest_context, line.chunk_tokens) * model.kv_bytes_per_token
        one = line.batch_size * row * layers
        slots = deployment.device_slots if is_tokens else None
        n_kept = line.n_microbatches if slots is None else min(line.n_microbatches, slots)
        yield MemoryNeed(
            role=role,
            weight_bytes=layers * model.layer_weight_bytes + model.ends_bytes(len(line.stages)),
            kv_bytes=n_kept * one,
            available_bytes=int(machine.memory_bytes * usable_share),
        )
        if is_tokens:
            copies = deployment.replicas + (n_kept < line.n_microbatches)
            yield MemoryNeed(
                role=f"the host of {role}",
                weight_bytes=0,
                kv_bytes=copies * line.n_microbatches * one,
                available_bytes=machine.host_memory_bytes,
            )
