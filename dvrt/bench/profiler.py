"""A profile measured on this machine: step times, sizes, bandwidths and the parts of a recovery."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import dvrt
from dvrt.bench.common import machine
from dvrt.bench.profile_links import LinkFigures, measure_links
from dvrt.bench.profile_runtime import (
    RuntimeProbe,
    probe_runtime,
    with_runtime,
)
from dvrt.bench.profile_ships import OUTPUT
from dvrt.bench.profile_steps import (
    StepGrid,
    StepSamples,
    fit_samples,
    measure_steps,
    relative_errors,
)
from dvrt.cluster.plan import Blueprint, plan_cluster
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.models.devices import require_cuda
from dvrt.options import format_size
from dvrt.planner.parts import LaunchFigures
from dvrt.planner.profile import MachineFigures, ModelFigures, Profile, RecoveryFigures

if TYPE_CHECKING:
    from dvrt.models.spec import ModelSpec, StageSpec

MOST_OF_MEMORY = 0.9
LENGTHS = (64, 128, 256, 512)
SHORT_CONTEXT = 16

OnProgress = Callable[[str], None]
MeasureLaunch = Callable[[Blueprint], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredProfile:
    """A profile, what it was made of, and how far its prediction of whole stages is off."""

    profile: Profile
    steps: StepSamples
    links: LinkFigures
    layers: int
    prompt_errors: list[float]
    token_errors: list[float]


def look_at(options: LaunchOptions) -> Blueprint:
    """The checkpoint and the device to measure, as a launch would take them.

    Raises ModelError for what cannot be served, ConfigError for the null device and absent ones.
    """
    blueprint = plan_cluster(options, Path(options.model).expanduser().absolute()).blueprint
    if blueprint.device == "null":
        raise ConfigError("device is null, whose steps take null_step_ms; there is none to measure")
    require_cuda(blueprint.device)
    return blueprint


def make_grid(
    blueprint: Blueprint, batches: tuple[int, ...], lengths: tuple[int, ...] | None, rounds: int
) -> StepGrid:
    """The grid of these batch sizes and prompt lengths; contexts are those lengths and a short one.

    Without lengths the usual ones that the model reaches. Raises ConfigError for others.
    """
    context = blueprint.context
    chosen = lengths or tuple(n for n in LENGTHS if n <= context) or (context,)
    for name, values in (("batch size", batches), ("prompt length", chosen)):
        if not values or min(values) < 1:
            raise ConfigError(f"a {name} in {','.join(map(str, values))!r} is not at least 1")
    if max(chosen) > context:
        raise ConfigError(
            f"a prompt length of {max(chosen)}; {blueprint.model.name} is served up to {context}"
        )
    prompts = tuple(sorted(set(chosen)))
    contexts = tuple(sorted({min(SHORT_CONTEXT, context), *prompts}))
    return StepGrid(
        batches=tuple(sorted(set(batches))),
        prompt_lengths=prompts,
        contexts=contexts,
        rounds=rounds,
    )


def measure_profile(
    blueprint: Blueprint,
    grid: StepGrid,
    *,
    layers: int | None = None,
    on_progress: OnProgress = lambda what: None,
    probe: RuntimeProbe | None = None,
    measure_launch: MeasureLaunch | None = None,
) -> MeasuredProfile:
    """Measure with the device, dtype, threads, exactness and chunks of the blueprint's options.

    ``probe`` says how the runtime's own costs are measured. ``layers`` takes the last so many only,
    for a model that does not fit; its layers count as all alike, and the runtime's costs are left
    out. Raises ConfigError for what does not fit, ModelError for the checkpoint.
    """
    model = blueprint.model
    taken = model.n_layers if layers is None else layers
    if not 1 <= taken <= model.n_layers:
        raise ConfigError(f"layers is {taken}; the model has {model.n_layers}")
    first = model.n_layers - taken
    _require_room(blueprint, first, grid)
    on_progress("a launch")
    launch_s = (measure_launch or time_launch)(blueprint)
    on_progress("bandwidths")
    links = measure_links(blueprint.device, model.directory)
    steps = measure_steps(
        lambda batch: _stage(blueprint, first, batch, grid.longest),
        grid,
        at_once=_stage_bytes(blueprint, first, grid) * len(grid.batches) < _room(blueprint),
        on_round=on_progress,
    )
    load_s = statistics.median(steps.load_s) * model.n_layers / taken
    recovery = RecoveryFigures(
        detect_s=blueprint.options.silence_s,
        restart_s=max(0.0, launch_s - load_s),
        load_s=load_s,
        restore=links.restore,
    )
    measured = _put_together(blueprint, steps, links, recovery, taken)
    if taken < model.n_layers:
        return measured
    on_progress("the runtime")
    probe = probe or _usual_probe(blueprint, grid)
    samples = probe_runtime(blueprint, probe)
    return replace(measured, profile=with_runtime(measured.profile, samples, blueprint.options))


def _usual_probe(blueprint: Blueprint, grid: StepGrid) -> RuntimeProbe:
    """Logs are sent away only where the model fits twice, and prompts leave room for tokens."""
    fits_twice = 2 * _stage_bytes(blueprint, 0, grid) < _room(blueprint)
    longest = min(blueprint.options.chunk_tokens, blueprint.context - OUTPUT)
    return RuntimeProbe(
        stages=min(2, blueprint.model.n_layers), ships=max(0, longest) if fits_twice else 0
    )


def _stage(blueprint: Blueprint, first: int, batch: int, context: int) -> StageSpec:
    from dvrt.models.spec import StageSpec

    options = blueprint.options
    return StageSpec(
        directory=str(blueprint.model.directory),
        first=first,
        stop=blueprint.model.n_layers,
        n_layers=blueprint.model.n_layers,
        dtype=blueprint.dtype,
        n_microbatches=1,
        batch_size=batch,
        max_context=max(2, context),
        chunk_tokens=options.chunk_tokens,
        exact=options.exact,
        n_threads=options.threads,
        device=blueprint.device,
    )


def _require_room(blueprint: Blueprint, first: int, grid: StepGrid) -> None:
    """Raise ConfigError, saying what is missing, when the largest batch does not fit."""
    needed, room = _stage_bytes(blueprint, first, grid), _room(blueprint)
    if needed > room:
        raise ConfigError(
            f"weights and KV of {max(grid.batches)} rows of {grid.longest} tokens need "
            f"{format_size(needed)} of {format_size(room)}: {format_size(needed - room)} missing; "
            "measure fewer layers, rows or tokens"
        )


def _stage_bytes(blueprint: Blueprint, first: int, grid: StepGrid) -> int:
    """What the stage with the largest batch holds."""
    model, layers = blueprint.model, (first, blueprint.model.n_layers)
    tokens = max(grid.batches) * (grid.longest + blueprint.options.chunk_tokens)
    needed = model.stage_bytes(layers, blueprint.dtype)
    return needed + tokens * model.kv_bytes_per_token(layers, blueprint.dtype)


def _room(blueprint: Blueprint) -> int:
    return int(_memory(blueprint.device)[1] * MOST_OF_MEMORY)


def _memory(device: str) -> tuple[int, int]:
    """All and free bytes of the device's memory."""
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return total, free
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes["MemTotal"], sizes["MemAvailable"]


def time_launch(blueprint: Blueprint) -> float:
    """Seconds from nothing to a ready one-stage pipeline."""

    async def ready() -> float:
        given = blueprint.options
        began = time.monotonic()
        launched = dvrt.launch(
            given.model,
            device=given.device,
            dtype=given.dtype,
            threads=given.threads,
            exact=given.exact,
            batch_size=1,
            max_context=min(SHORT_CONTEXT, blueprint.context),
        )
        async with launched:
            return time.monotonic() - began

    return asyncio.run(ready())


def _put_together(
    blueprint: Blueprint,
    steps: StepSamples,
    links: LinkFigures,
    recovery: RecoveryFigures,
    layers: int,
) -> MeasuredProfile:
    model, options = blueprint.model, blueprint.options
    fits = fit_samples(steps)
    device = _device_name(blueprint.device)
    profile = Profile(
        name=f"{model.name}-{blueprint.device}".lower(),
        origin="measured",
        note=(
            f"Measured on {device}: {blueprint.dtype}, {options.threads} thread(s), "
            f"{'exact' if options.exact else 'fast'}, prompts in chunks of {options.chunk_tokens}, "
            f"{layers} of {model.n_layers} layers; links between two processes of this machine; "
            f"detection as configured, restart a launch without its load; the runtime's own costs "
            "and those of a killed worker apart."
        ),
        model=_model_figures(model, blueprint.dtype),
        machine=_machine_figures(blueprint.device, device, links),
        prompt=fits.prompt,
        token=fits.token,
        head=fits.head,
        prompt_stage=fits.prompt_stage,
        token_stage=fits.token_stage,
        chunk_tokens=options.chunk_tokens,
        recovery=recovery,
        launch=LaunchFigures(
            device=blueprint.device,
            dtype=blueprint.dtype,
            threads=options.threads,
            exact=options.exact,
        ),
    )

    def without_end(stage_s: Callable[[float, int, float], float], b: int, n: float) -> float:
        return stage_s(layers, b, n) - profile.head_s(b)

    return MeasuredProfile(
        profile=profile,
        steps=steps,
        links=links,
        layers=layers,
        prompt_errors=relative_errors(
            lambda b, n: without_end(profile.stage_prompt_s, b, n), steps.prompts
        ),
        token_errors=relative_errors(
            lambda b, n: without_end(profile.stage_token_s, b, n), steps.tokens
        ),
    )


def _model_figures(model: ModelSpec, dtype: str) -> ModelFigures:
    from dvrt.models.spec import DTYPE_BYTES

    width = DTYPE_BYTES[dtype]
    return ModelFigures(
        name=model.name,
        layers=model.n_layers,
        hidden=model.hidden_size,
        kv_heads=model.n_kv_heads,
        head_dim=(model.key_dim + model.value_dim) // 2,
        dtype_bytes=width,
        layer_weight_bytes=max(model.layer_params) * width,
        embedding_bytes=model.embedding_params * width,
        head_bytes=model.head_params * width,
        kv_bytes_per_token=model.kv_bytes_per_token((0, 1), dtype),
        tied_head=bool(model.tied_params),
        positions=min(
            (limit for limit in (model.max_positions, model.rope_bound) if limit is not None),
            default=None,
        ),
    )


def _machine_figures(device: str, name: str, links: LinkFigures) -> MachineFigures:
    return MachineFigures(
        name=name,
        gpus=1,
        memory_bytes=_memory(device)[0],
        host_memory_bytes=_memory("cpu")[0],
        host_to_device=links.host_to_device,
        device_to_host=links.device_to_host,
        network=links.tcp,
        gpu_link=links.shm,
        disk=links.disk,
        hop_s=links.hop_s,
    )


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    about = machine()
    return f"{about['cpu']} ({about['usable_cpus']} usable cores)"
