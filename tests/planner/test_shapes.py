"""Shapes from Hugging Face configurations and by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dvrt.errors import ConfigError
from dvrt.planner.catalog import GPUS, SHAPES
from dvrt.planner.roofline import derive_profile
from dvrt.planner.shapes import open_shape, shape_from_config

OPT_66B = {
    "model_type": "opt",
    "hidden_size": 9216,
    "num_attention_heads": 72,
    "num_hidden_layers": 64,
    "ffn_dim": 36864,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "torch_dtype": "float16",
}
LLAMA_8B = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
GPT2_XL = {
    "model_type": "gpt2",
    "n_embd": 1600,
    "n_head": 25,
    "n_layer": 48,
    "n_positions": 1024,
    "vocab_size": 50257,
}
BLOOM = {
    "model_type": "bloom",
    "hidden_size": 14336,
    "n_head": 112,
    "n_layer": 70,
    "vocab_size": 250880,
}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("OPT-66B", OPT_66B),
        ("Llama-3-8B", LLAMA_8B),
        ("GPT2-1.5B", GPT2_XL),
        ("BLOOM-176B", BLOOM),
    ],
)
def test_a_configuration_gives_the_catalogues_shape(
    name: str, config: dict[str, object], tmp_path: Path
) -> None:
    known = next(shape for shape in SHAPES if shape.name == name)
    directory = tmp_path / name
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    assert open_shape(str(directory)) == known == open_shape(name.lower())
    assert derive_profile(known, GPUS[0]).origin == "derived"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_layer": None}, "n_layer"),
        ({"n_layer": -1}, "n_layer"),
        ({"n_embd": "wide"}, "n_embd"),
        ({"vocab_size": 1.5}, "vocab_size"),
    ],
)
def test_bad_configurations_name_the_key(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        shape_from_config("m", GPT2_XL | changes)
    with pytest.raises(ConfigError, match="must be an object"):
        shape_from_config("m", [])


def test_an_unknown_model() -> None:
    with pytest.raises(ConfigError, match="neither"):
        open_shape("GPT-99")
