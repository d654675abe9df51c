"""Building one stage: transformers' own model on the meta device, cut, and only its tensors read.

Every tensor that the stage needs is found and its shape compared before the first byte is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dvrt.errors import ModelError
from dvrt.models.architecture import find_architecture
from dvrt.models.attention import EXACT, FAST
from dvrt.models.checkpoint import TensorEntry, read_tensor_index
from dvrt.models.families import Cut, find_cut
from dvrt.models.held_weights import HeldWeights
from dvrt.models.modules import AddsNothing, PassThrough
from dvrt.models.spec import StageSpec
from dvrt.models.weights import Progress, read_tensors

CausalModel = Any
"""A transformers model for causal language modelling; its methods carry no types."""

_building = threading.Lock()
"""transformers sets the process's default dtype while it builds a model, and sets it back."""
_OTHER_HEAD_NAMES = ("embed_out.weight",)
_ENTRY_FACTORS = ("embedding_multiplier",)
"""Attributes by which a base model multiplies what enters it (Granite)."""


@dataclass(slots=True, kw_only=True)
class LoadedStage:
    """One stage's modules and weights; ``model`` is the causal LM around the cut ``inner``."""

    model: CausalModel
    inner: nn.Module
    cut: Cut
    weights_bytes: int


def load_stage(
    spec: StageSpec, progress: Progress | None = None, held: HeldWeights | None = None
) -> LoadedStage:
    """Build and load. Raises ModelError naming the tensor and file that is missing or wrong."""
    device, dtype = torch.device(spec.device), getattr(torch, spec.dtype)
    model, cut = _build(spec, dtype)
    inner = _inner(model, cut)
    _cut(model, inner, cut, spec, dtype, device)
    entries = read_tensor_index(Path(spec.directory))
    _untie_own_head(model, spec, entries)
    wanted = _find_tensors(model, inner, cut, spec, entries)
    tensors = read_tensors(wanted, dtype, device, progress, held)
    _make_buffers(model, device)
    _put(model, tensors)
    model.train(mode=False)
    weights_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return LoadedStage(model=model, inner=inner, cut=cut, weights_bytes=weights_bytes)


def _build(spec: StageSpec, dtype: torch.dtype) -> tuple[CausalModel, Cut]:
    """The whole model without memory, and where to cut it."""
    try:
        config = AutoConfig.from_pretrained(spec.directory, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"{spec.directory}: config.json is refused by transformers: {error}"
        ) from error
    architecture = find_architecture(config.model_type)
    cut = find_cut(architecture) if architecture else None
    if cut is None:
        raise ModelError(f"{spec.directory}: {config.model_type!r} is not served")
    if config.num_hidden_layers != spec.n_layers:
        raise ModelError(
            f"{spec.directory}: {config.num_hidden_layers} layers, and "
            f"{spec.n_layers} were announced"
        )
    attention = "eager" if cut.alibi else EXACT if spec.exact else FAST
    make: Any = AutoModelForCausalLM
    with _building, torch.device("meta"):
        try:
            model = make.from_config(config, dtype=dtype, attn_implementation=attention)
        except Exception as error:
            raise ModelError(f"{spec.directory}: transformers cannot build it: {error}") from error
    return model, cut


def _inner(model: CausalModel, cut: Cut) -> nn.Module:
    base: nn.Module = model.base_model
    return base.get_submodule(cut.inner) if cut.inner else base


def _cut(
    model: CausalModel,
    inner: nn.Module,
    cut: Cut,
    spec: StageSpec,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Keep the stage's own layers and ends, and put pass-throughs in the place of the others."""
    layers: Any = getattr(inner, cut.layers)
    setattr(inner, cut.layers, nn.ModuleList(list(layers)[spec.first : spec.stop]))
    if not spec.is_first:
        for name in cut.first:
            if isinstance(getattr(inner, name, None), nn.Module):
                adds = name in cut.additive
                setattr(inner, name, AddsNothing(dtype, device) if adds else PassThrough())
        for name in _ENTRY_FACTORS:
            if hasattr(inner, name):
                setattr(inner, name, 1.0)
    if not spec.is_last:
        for name in cut.last:
            if isinstance(getattr(inner, name, None), nn.Module):
                setattr(inner, name, PassThrough())
        model.set_output_embeddings(PassThrough())


def _untie_own_head(
    model: CausalModel, spec: StageSpec, entries: Mapping[str, TensorEntry]
) -> None:
    """A checkpoint with a head of its own is loaded as it is, whatever its configuration says."""
    head = model.get_output_embeddings()
    if spec.is_last and any(name in entries for name in ("lm_head.weight", *_OTHER_HEAD_NAMES)):
        head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=False)


def _find_tensors(
    model: CausalModel,
    inner: nn.Module,
    cut: Cut,
    spec: StageSpec,
    entries: Mapping[str, TensorEntry],
) -> dict[str, TensorEntry]:
    """For each parameter and kept buffer of the stage, its tensor in the files; shapes compared."""
    out = {}
    at = _path(model, inner)
    layers = f"{at}.{cut.layers}." if at else f"{cut.layers}."
    tied = getattr(model, "_tied_weights_keys", None) or {}
    for name, tensor in _persistent(model):
        whole = name
        if name.startswith(layers):
            number, rest = name.removeprefix(layers).split(".", 1)
            whole = f"{layers}{int(number) + spec.first}.{rest}"
        entry = _find(whole, model, entries, tied)
        if entry is None:
            raise ModelError(f"{spec.directory}: tensor {whole} is missing")
        if entry.shape != tuple(tensor.shape):
            raise ModelError(
                f"{entry.file}: tensor {entry.name} has the shape {list(entry.shape)}; "
                f"the configuration wants {list(tensor.shape)}"
            )
        out[name] = entry
    return out


def _persistent(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, each once, and the buffers that belong to a checkpoint."""
    yield from model.named_parameters()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer


def _path(model: nn.Module, inner: nn.Module) -> str:
    paths = (path for path, module in model.named_modules() if module is inner)
    return str(next(paths))


def _find(
    name: str,
    model: CausalModel,
    entries: Mapping[str, TensorEntry],
    tied: Mapping[str, str],
) -> TensorEntry | None:
    """By its name, without the base model's prefix (older files), or where it is tied to."""
    names = [name, name.removeprefix(f"{model.base_model_prefix}.")]
    if name == "lm_head.weight":
        names += _OTHER_HEAD_NAMES
    for candidate in names:
        if candidate in entries:
            return entries[candidate]
    source = tied.get(name) if model.config.tie_word_embeddings else None
    return _find(source, model, entries, {}) if source else None


def _make_buffers(model: CausalModel, device: torch.device) -> None:
    """Buffers that no file has (rotary frequencies) are computed on the real device."""
    for module in model.modules():
        made = {
            name: torch.full_like(buffer, _unset(buffer), device=device)
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_meta and name in module._non_persistent_buffers_set
        }
        module._buffers.update(made)
        if made:
            model._init_weights(module)
        for name, buffer in made.items():
            if buffer.isnan().any():
                raise ModelError(f"{type(module).__name__}: transformers leaves {name} unset")


def _unset(buffer: torch.Tensor) -> float:
    return float("nan") if buffer.is_floating_point() else -1


def _put(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put the tensors in, a tied parameter in all its places."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append((module, name))
    for path, tensor in tensors.items():
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        if name in module._buffers:
            module._buffers[name] = tensor
            continue
        new = nn.Parameter(tensor, requires_grad=False)
        for holder, own_name in places[id(module._parameters[name])]:
            holder._parameters[own_name] = new
