"""Profiles from the public repository's inputs, and its ``model_info.json`` from a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dvrt.planner.model_info import ModelInfo
from dvrt.planner.profile import MachineFigures, ModelFigures, Profile, RecoveryFigures
from dvrt.planner.public import PublicInput
from dvrt.planner.step_fit import Sample, fit_steps

HOST_LINK = 25e9
NETWORK = 5e9


def profile_from_public(given: PublicInput) -> Profile:
    """The public planner's arguments as a profile with one sample a phase.

    Times at other batch sizes are unknown, so the planner stays at the one given; prompts are taken
    as proportional to their tokens and token steps as constant. The public planner has no rates;
    those of the paper's A100 machines stand in (25 GB/s to the host, 40 Gbit/s between machines).
    """
    whole_prompt_s = given.prompt_time * given.num_machines / 1000
    whole_token_s = given.token_time * given.num_machines / 1000
    batch, layers = given.batch_size, given.num_layers
    return Profile(
        name="public-planner-input",
        origin="imported",
        note="Imported from the public planner's arguments; rates of the paper's A100 machines.",
        model=_public_model(given),
        machine=_public_machine(given),
        prompt=fit_steps([(batch, given.prompt_len, whole_prompt_s / layers)], ["bl"]),
        token=fit_steps([(batch, given.prompt_len, whole_token_s / layers)], ["1"]),
        head=None,
        recovery=RecoveryFigures(detect_s=0.5, restart_s=10.0),
    )


def _public_model(given: PublicInput) -> ModelFigures:
    return ModelFigures(
        name="model",
        layers=given.num_layers,
        hidden=given.attention_size,
        kv_heads=1,
        head_dim=given.attention_size,
        dtype_bytes=given.fp_size,
        layer_weight_bytes=given.layer_size * given.fp_size,
        embedding_bytes=0,
        head_bytes=0,
        kv_bytes_per_token=2 * given.attention_size * given.fp_size,
        tied_head=True,
    )


def _public_machine(given: PublicInput) -> MachineFigures:
    memory_bytes = given.num_machines_per_node * given.memory_per_gpu * 10**9
    return MachineFigures(
        name=f"{given.num_machines_per_node} x {given.memory_per_gpu} GB",
        gpus=given.num_machines_per_node,
        memory_bytes=memory_bytes,
        host_memory_bytes=memory_bytes,
        host_to_device=HOST_LINK,
        device_to_host=HOST_LINK,
        network=NETWORK,
        gpu_link=HOST_LINK,
        disk=NETWORK,
    )


def profile_from_model_info(info: ModelInfo, like: Profile, *, prompt_length: int) -> Profile:
    """Whole-model times of a ``model_info.json`` with the sizes and rates of another profile.

    The file says nothing of lengths: prompts are taken as proportional to their tokens, token
    steps as independent of the context.
    """
    layers = like.model.layers
    prompts: list[Sample] = []
    tokens: list[Sample] = []
    for batch, prompt_ms, token_ms in zip(
        info.batch_sizes, info.prompt_ms, info.token_ms, strict=True
    ):
        prompts.append((batch, prompt_length, prompt_ms / 1000 / layers))
        tokens.append((batch, prompt_length, token_ms / 1000 / layers))
    return replace(
        like,
        name=f"{info.model}-imported".lower(),
        origin="imported",
        note=f"Times from a model_info.json at prompts of {prompt_length}; sizes of {like.name}.",
        prompt=fit_steps(prompts, ["1", "bl"]),
        token=fit_steps(tokens, ["1", "b"]),
        head=None,
        prompt_stage=None,
        token_stage=None,
        chunk_tokens=0,
    )


def model_info_of(
    profile: Profile, *, batches: Sequence[int], prompt_length: int, context: float
) -> ModelInfo:
    """Whole-model milliseconds on one machine, as ``model_info.json`` has them."""
    layers = profile.model.layers
    return ModelInfo(
        model=profile.model.name,
        batch_sizes=tuple(batches),
        prompt_ms=tuple(1000 * profile.stage_prompt_s(layers, b, prompt_length) for b in batches),
        token_ms=tuple(1000 * profile.stage_token_s(layers, b, context) for b in batches),
    )
