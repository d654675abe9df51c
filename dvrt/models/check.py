"""Judging a checkpoint directory: what it is, or why it cannot be served, by name.

Reads config.json, generation_config.json and safetensors headers; loads nothing and imports neither
torch nor transformers, so the refusal comes before any worker starts. A tensor that one family
alone could miss is found by the stage that needs it, before it reads any weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvrt.errors import ModelError
from dvrt.models.architecture import Architecture, find_architecture
from dvrt.models.checkpoint import TensorEntry, read_json, read_tensor_index
from dvrt.models.families import Cut, find_cut
from dvrt.models.generation import read_generation_defaults
from dvrt.models.settings import Settings
from dvrt.models.spec import DTYPE_BYTES, ModelSpec

_SAVED_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float32"}
_HEAD_NAMES = ("lm_head", "embed_out")


def inspect_checkpoint(directory: str | Path) -> ModelSpec:
    """What is in the directory. Raises ModelError, naming the reason, for what cannot be served."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such directory")
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise ModelError(
            f"{directory}: no config.json there; a Hugging Face model directory has one"
        )
    config = read_json(config_file)
    architecture = _require_causal(directory, config)
    cut = find_cut(architecture)
    if cut is None:
        raise ModelError(
            f"{directory}: {architecture.causal_class} is not served: transformers has no pipeline "
            f"plan for {architecture.model_type!r} and dvrt no adapter"
        )
    settings = Settings(directory, config, architecture)
    settings.refuse_unordinary_layers()
    tensors = read_tensor_index(directory)
    _refuse_quantised(directory, config, tensors)
    return _make_spec(settings, cut, tensors)


def _require_causal(directory: Path, config: Mapping[str, Any]) -> Architecture:
    """The architecture, unless this is no causal language model of transformers' own."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{directory}/config.json: model_type is missing")
    if config.get("auto_map"):
        raise ModelError(
            f"{directory}: config.json brings its own code (auto_map), which is never run; remove "
            f"the key if transformers' own {model_type!r} implements this model"
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{directory}: {model_type!r} is an encoder-decoder, not a causal LM")
    architecture = find_architecture(model_type)
    if architecture is None:
        raise ModelError(
            f"{directory}: {model_type!r} is not a causal LM that the installed transformers knows"
        )
    names = config.get("architectures") or [architecture.causal_class]
    if not isinstance(names, list):
        raise ModelError(
            f"{directory}/config.json: architectures is {names!r}; expected a list of names"
        )
    if architecture.causal_class not in names:
        raise ModelError(
            f"{directory}: not a causal LM: architectures is {names}, "
            f"a {model_type!r} that generates is a {architecture.causal_class}"
        )
    return architecture


def _refuse_quantised(
    directory: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> None:
    quantisation = config.get("quantization_config")
    if quantisation:
        method = (
            quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        )
        raise ModelError(
            f"{directory}: the checkpoint is quantised ({method}); dvrt needs plain weights"
        )
    for entry in tensors.values():
        if entry.dtype.startswith("F8"):
            raise ModelError(f"{entry.file}: tensor {entry.name} is quantised ({entry.dtype})")


def _make_spec(settings: Settings, cut: Cut, tensors: Mapping[str, TensorEntry]) -> ModelSpec:
    n_layers = settings.integer("num_hidden_layers")
    parts = _Parts(cut, n_layers, tensors)
    parts.require_whole(settings)
    key_dim, value_dim = settings.head_dims()
    tied = settings.get("tie_word_embeddings", False) and not parts.own_head
    embeddings = parts.token_embedding()
    tied_params = embeddings.n_elements if tied and embeddings else 0
    return ModelSpec(
        directory=settings.directory,
        family=settings.architecture.model_type,
        causal_class=settings.architecture.causal_class,
        n_layers=n_layers,
        hidden_size=settings.integer("hidden_size"),
        n_heads=settings.integer("num_attention_heads"),
        n_kv_heads=settings.n_kv_heads(),
        key_dim=key_dim,
        value_dim=value_dim,
        vocab_size=settings.integer("vocab_size"),
        dtype=_dtype(settings, embeddings),
        max_positions=settings.max_positions(),
        rope_bound=settings.rope_bound(),
        defaults=read_generation_defaults(settings.directory, settings.config),
        layer_params=tuple(sum(e.n_elements for e in layer.values()) for layer in parts.layers),
        embedding_params=sum(e.n_elements for e in parts.first),
        head_params=sum(e.n_elements for e in parts.last) + tied_params,
        tied_params=tied_params,
    )


def _dtype(settings: Settings, embeddings: TensorEntry | None) -> str:
    """The type that config.json names, else that of the embeddings."""
    for key in ("dtype", "torch_dtype"):
        name = settings.config.get(key)
        if isinstance(name, str) and name.removeprefix("torch.") in DTYPE_BYTES:
            return name.removeprefix("torch.")
    return _SAVED_TYPES.get(embeddings.dtype, "float32") if embeddings else "float32"


class _Parts:
    """The tensors sorted into layers, first stage and last stage by their names."""

    def __init__(self, cut: Cut, n_layers: int, tensors: Mapping[str, TensorEntry]) -> None:
        self._cut = cut
        self._n_layers = n_layers
        self._n_found = 0
        self.layers: list[dict[str, TensorEntry]] = []
        self.first: list[TensorEntry] = []
        self.last: list[TensorEntry] = []
        self.own_head = False
        pattern = re.compile(rf"^(?:\w+\.)*?{cut.layers}\.(\d+)\.(.+)$")
        for name, entry in tensors.items():
            match = pattern.match(name)
            if match is None:
                self._add_end(name, entry)
            else:
                self._add_layered(int(match[1]), match[2], entry)

    def _add_layered(self, number: int, suffix: str, entry: TensorEntry) -> None:
        self._n_found = max(self._n_found, number + 1)
        if number < self._n_layers:
            self.layers += ({} for _ in range(number + 1 - len(self.layers)))
            self.layers[number][suffix] = entry

    def _add_end(self, name: str, entry: TensorEntry) -> None:
        segments = set(name.split("."))
        if segments & set(self._cut.first):
            self.first.append(entry)
        elif segments & set(_HEAD_NAMES):
            self.last.append(entry)
            self.own_head = True
        elif segments & set(self._cut.last):
            self.last.append(entry)

    def token_embedding(self) -> TensorEntry | None:
        name = self._cut.first[0]
        return next((e for e in self.first if e.name.endswith(f"{name}.weight")), None)

    def require_whole(self, settings: Settings) -> None:
        """Refuse a checkpoint that lacks a layer or a tensor, or has one that differs in shape."""
        directory = settings.directory
        embeddings = self.token_embedding()
        if embeddings is None:
            raise ModelError(f"{directory}: tensor {self._cut.first[0]}.weight is missing")
        vocab_size = settings.integer("vocab_size")
        if embeddings.shape[:1] != (vocab_size,):
            raise ModelError(
                f"{embeddings.file}: tensor {embeddings.name} has the shape "
                f"{list(embeddings.shape)}; config.json says vocab_size {vocab_size}"
            )
        self._require_layers(settings)
        self._require_alike(directory)

    def _require_layers(self, settings: Settings) -> None:
        """All layers of the configuration are there, and none beyond them but those that predict
        further tokens, which the model leaves out by itself."""
        directory, n_layers = settings.directory, self._n_layers
        number = next((n for n, layer in enumerate(self.layers) if not layer), len(self.layers))
        if number < n_layers:
            raise ModelError(f"{directory}: the tensors of layer {number} are missing")
        n_extra = settings.get("num_nextn_predict_layers")
        if self._n_found > n_layers + (n_extra if type(n_extra) is int else 0):
            raise ModelError(
                f"{directory}/config.json: num_hidden_layers is {n_layers}; "
                f"the checkpoint has {self._n_found} layers"
            )

    def _require_alike(self, directory: Path) -> None:
        """Layers are all made alike: compare each with what most layers have."""
        for suffix in sorted(set().union(*self.layers)):
            holders = [layer[suffix] for layer in self.layers if suffix in layer]
            if 2 * len(holders) <= len(self.layers):
                continue
            shapes = [entry.shape for entry in holders]
            usual = max(shapes, key=shapes.count)
            for number, layer in enumerate(self.layers):
                entry = layer.get(suffix)
                if entry is None:
                    name = holders[0].name.replace(
                        f"{self._cut.layers}.{_number(holders[0], self._cut)}.",
                        f"{self._cut.layers}.{number}.",
                    )
                    raise ModelError(f"{directory}: tensor {name} is missing")
                if entry.shape != usual:
                    raise ModelError(
                        f"{entry.file}: tensor {entry.name} has the shape {list(entry.shape)}; "
                        f"the other layers have {list(usual)}"
                    )


def _number(entry: TensorEntry, cut: Cut) -> str:
    match = re.search(rf"(?:^|\.){cut.layers}\.(\d+)\.", entry.name)
    return match[1] if match else ""
