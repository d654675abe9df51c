"""A model's dimensions from its Hugging Face ``config.json``, or by the name of a known model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError
from dvrt.planner.catalog import SHAPES
from dvrt.planner.model_info import read_json
from dvrt.planner.roofline import Shape

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def open_shape(model: str) -> Shape:
    """The shape of a checkpoint's directory, or of a model that the catalogue knows.

    ConfigError when it is neither, or when the configuration lacks a dimension.
    """
    path = Path(model) / "config.json"
    if path.exists():
        return shape_from_config(Path(model).name or model, read_json(path))
    for shape in SHAPES:
        if shape.name.lower() == model.lower():
            return shape
    known = ", ".join(shape.name for shape in SHAPES)
    raise ConfigError(f"{model!r} is neither a directory with a config.json nor one of {known}")


def shape_from_config(name: str, config: Any) -> Shape:
    """The shape that a configuration describes; weights in its ``dtype``, else 16 bits."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name}: config.json must be an object")
    hidden = _dimension(name, config, "hidden_size", "n_embd")
    heads = _dimension(name, config, "num_attention_heads", "n_head")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float16")
    return Shape(
        name=name,
        layers=_dimension(name, config, "num_hidden_layers", "n_layer"),
        hidden=hidden,
        kv_heads=_dimension(name, config, "num_key_value_heads", default=heads),
        head_dim=_dimension(name, config, "head_dim", default=hidden // heads),
        feed_forward=_dimension(
            name, config, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden
        ),
        vocabulary=_dimension(name, config, "vocab_size"),
        positions=_positions(name, config),
        longest=_longest(name, config),
        gated=str(config.get("hidden_act", "")) in ("silu", "swiglu"),
        tied=bool(config.get("tie_word_embeddings", "hidden_act" not in config)),
        dtype_bytes=DTYPE_BYTES.get(dtype.removeprefix("torch."), 2),
    )


def _positions(name: str, config: Mapping[str, Any]) -> int:
    """Learned position embeddings, which only GPT-2 and OPT have; OPT's table holds two more."""
    if config.get("model_type") == "gpt2":
        return _dimension(name, config, "n_positions", default=1024)
    if config.get("model_type") == "opt":
        return _dimension(name, config, "max_position_embeddings") + 2
    return 0


def _longest(name: str, config: Mapping[str, Any]) -> int:
    """The longest context; 0 where the configuration gives no limit."""
    if config.get("model_type") == "gpt2":
        return _positions(name, config)
    if config.get("max_position_embeddings") is None:
        return 0
    return _dimension(name, config, "max_position_embeddings")


def _dimension(name: str, config: Mapping[str, Any], *keys: str, default: int | None = None) -> int:
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name}: {key} is {value!r}; a whole number of at least 1")
        return value
    if default is None:
        raise ConfigError(f"{name}: the configuration lacks {' or '.join(keys)}")
    return default
