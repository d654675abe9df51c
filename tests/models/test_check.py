"""A checkpoint is known, or refused by name, before anything is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from dvrt.errors import ConfigError, ModelError
from dvrt.models.architecture import find_architecture
from dvrt.models.check import inspect_checkpoint
from dvrt.models.families import find_cut
from dvrt.models.spec import StageSpec
from dvrt.models.tiny import FAMILIES, make_tiny, write_tiny

Checkpoint = Callable[[str], Path]


@pytest.fixture
def copy(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a tiny checkpoint with changed settings; a value of None removes the key."""

    def changed(family: str = "llama", **settings: Any) -> Path:
        directory = tmp_path / family
        shutil.copytree(checkpoint(family), directory)
        config = json.loads((directory / "config.json").read_text())
        for key, value in settings.items():
            config.pop(key, None)
            if value is not None:
                config[key] = value
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    return changed


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_in_a_checkpoint(checkpoint: Checkpoint, family: str) -> None:
    found = inspect_checkpoint(checkpoint(family))
    model = make_tiny(family)
    assert found.n_params == model.num_parameters()
    assert found.causal_class == type(model).__name__
    assert found.n_layers == len(found.layer_params) == 4
    assert (found.hidden_size, found.n_heads, found.vocab_size) == (64, 4, 307)
    assert found.max_positions == (None if family == "bloom" else 512)
    assert found.dtype == "float32"
    assert found.stage_bytes((0, 4), "float32") == 4 * found.n_params
    split = found.stage_bytes((0, 2), "float32") + found.stage_bytes((2, 4), "float32")
    assert split == 4 * (found.n_params + found.tied_params)


def test_shapes_of_the_log(checkpoint: Checkpoint) -> None:
    found = inspect_checkpoint(checkpoint("qwen3"))
    assert (found.n_kv_heads, found.key_dim, found.value_dim) == (2, 32, 32)
    assert found.kv_bytes_per_token((1, 3), "bfloat16") == 2 * 2 * 2 * 32 * 2


def test_defaults_of_the_configuration_class(copy: Callable[..., Path]) -> None:
    """Settings that config.json leaves out are those of transformers' class."""
    directory = copy("gpt2", n_positions=None, n_head=None)
    found = inspect_checkpoint(directory)
    assert (found.max_positions, found.n_heads) == (1024, 12)


def test_generation_defaults(tmp_path: Path, checkpoint: Checkpoint) -> None:
    given = {"eos_token_id": [3, 9], "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    directory = write_tiny(tmp_path / "a", n_layers=1, generation={**given, "do_sample": True})
    found = inspect_checkpoint(directory).defaults
    assert found.eos_ids == (3, 9)
    assert (found.temperature, found.top_k, found.top_p) == (0.7, 20, 0.8)
    assert found.repetition_penalty is None
    (directory / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": 5}')
    found = inspect_checkpoint(directory).defaults
    assert (found.temperature, found.eos_ids) == (0.0, (5,))
    (directory / "generation_config.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": 8}))
    assert inspect_checkpoint(directory).defaults.eos_ids == (8,)
    assert inspect_checkpoint(checkpoint("llama")).defaults.eos_ids == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0}, r"generation_config\.json: top_p is 0; it must be above 0"),
        ({"temperature": 200}, "temperature is 200; it must be at least 0 and at most 100"),
        ({"temperature": 1e-9}, "temperature is 1e-09; above 0 it must be at least"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0"),
        ({"eos_token_id": ["a"]}, "eos_token_id"),
    ],
)
def test_senseless_generation_defaults(
    copy: Callable[..., Path], values: dict[str, Any], message: str
) -> None:
    directory = copy()
    (directory / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=message):
        inspect_checkpoint(directory)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        inspect_checkpoint(tmp_path / "absent")


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\x00\x01", '{"model_type": 3}'])
def test_configuration_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' is an encoder-decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a causal LM"),
        ({"model_type": "vit"}, "'vit' is not a causal LM"),
        ({"model_type": "frobnicator"}, "'frobnicator' is not a causal LM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal LM"),
        ({"auto_map": {"AutoModelForCausalLM": "code.Mine"}}, "its own code"),
        ({"model_type": "falcon", "architectures": ["FalconForCausalLM"]}, "no pipeline plan"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not"),
        (
            {"model_type": "mistral", "architectures": None, "sliding_window": 4096},
            r"sliding-window attention \(sliding_window is 4096\)",
        ),
        ({"model_type": "mistral", "architectures": None}, "sliding_window is 4096"),
        (
            {
                "model_type": "qwen3",
                "architectures": None,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            "layers with sliding_attention",
        ),
        (
            {
                "model_type": "qwen3_next",
                "architectures": None,
                "layer_types": ["linear_attention"] * 4,
            },
            "layers with linear_attention",
        ),
        ({"model_type": "minimax", "architectures": None}, "linear_attention|mixture of experts"),
        ({"model_type": "gemma2", "architectures": None}, "sliding"),
        ({"model_type": "mixtral", "architectures": None}, "mixture of experts"),
        ({"model_type": "doge", "architectures": None}, "dynamic mask|experts"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"num_hidden_layers": 5}, "the tensors of layer 4 are missing"),
        ({"num_hidden_layers": 10**30}, "the tensors of layer 4 are missing"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3; the checkpoint has 4 layers"),
        ({"architectures": 3}, "architectures is 3; expected a list of names"),
        ({"architectures": "LlamaForCausalLM"}, "expected a list of names"),
        ({"head_dim": {"a": 1}}, "head_dim is {'a': 1}, expected a number"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers is 'four'"),
        ({"vocab_size": 999}, "vocab_size 999"),
    ],
)
def test_refused_by_name(copy: Callable[..., Path], settings: dict[str, Any], message: str) -> None:
    directory = copy(**settings)
    with pytest.raises(ModelError, match=message) as caught:
        inspect_checkpoint(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_ropes_that_rewrite_old_keys(copy: Callable[..., Path], kind: str) -> None:
    rope = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 100}
    found = inspect_checkpoint(copy(rope_parameters=rope))
    assert found.rope_bound == 100
    assert found.context(100) == found.context() == 100
    with pytest.raises(ConfigError, match="max_context is 101; beyond 100"):
        found.context(101)


def test_older_spelling_of_ropes(copy: Callable[..., Path]) -> None:
    directory = copy(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert inspect_checkpoint(directory).rope_bound == 512


def test_layers_that_predict_further_tokens_are_left_out(copy: Callable[..., Path]) -> None:
    assert inspect_checkpoint(copy(num_hidden_layers=3, num_nextn_predict_layers=1)).n_layers == 3


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_nesting_without_end_is_no_json(copy: Callable[..., Path], name: str) -> None:
    directory = copy()
    (directory / name).write_text('{"a":' + "[" * 100_000)
    with pytest.raises(ModelError, match=rf"{name}: not JSON"):
        inspect_checkpoint(directory)


def test_an_index_that_names_no_file(copy: Callable[..., Path]) -> None:
    directory = copy()
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": ["a"]}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="is said to be in \\['a'\\], which is no file name"):
        inspect_checkpoint(directory)


def test_context(checkpoint: Checkpoint) -> None:
    found = inspect_checkpoint(checkpoint("llama"))
    assert (found.context(), found.context(64)) == (512, 64)
    with pytest.raises(ConfigError, match="max_context is 513; llama has 512 positions"):
        found.context(513)
    with pytest.raises(ConfigError, match="at least 2"):
        found.context(1)
    unlimited = inspect_checkpoint(checkpoint("bloom"))
    assert (unlimited.context(), unlimited.context(9000)) == (2048, 9000)


def test_pickled_weights(copy: Callable[..., Path]) -> None:
    directory = copy()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle and is never opened"):
        inspect_checkpoint(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        inspect_checkpoint(directory)


def test_sharded(tmp_path: Path, checkpoint: Checkpoint) -> None:
    directory = write_tiny(tmp_path / "llama", "llama", max_shard="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 3
    whole, sharded = inspect_checkpoint(checkpoint("llama")), inspect_checkpoint(directory)
    assert sharded.layer_params == whole.layer_params


def test_older_transformers_ways(copy: Callable[..., Path]) -> None:
    """No architectures, torch_dtype instead of dtype: still the same checkpoint."""
    directory = copy(architectures=None, dtype=None, torch_dtype="bfloat16")
    assert inspect_checkpoint(directory).dtype == "bfloat16"


def test_architectures_agree_with_transformers() -> None:
    """What is read from the source is what the imported classes say."""
    for model_type in ("llama", "gpt2", "gpt_neox", "qwen3", "phi3", "cohere"):
        known = find_architecture(model_type)
        assert known is not None
        model = make_tiny(model_type, n_layers=1, settings={"pad_token_id": None})
        config = type(model.config)
        assert known.causal_class == type(model).__name__
        assert tuple(known.plan or ()) == tuple(config.base_model_pp_plan or ())
        assert dict(known.aliases) == config.attribute_map
        cut = find_cut(known)
        assert cut is not None
        base = model.base_model
        assert all(hasattr(base, name) for name in (cut.layers, *cut.first, *cut.last))
    assert find_architecture("no-such-model") is None


def test_judging_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, dvrt.models.check, dvrt.models.split\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 2, "stop": 2}, r"layers \[2, 2\) of 4"),
        ({"stop": 5}, r"layers \[0, 5\) of 4"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_context": 1}, "max_context is 1"),
    ],
)
def test_stages_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "directory": "m",
        "first": 0,
        "stop": 4,
        "n_layers": 4,
        "dtype": "float32",
        "n_microbatches": 1,
        "batch_size": 1,
        "max_context": 16,
    }
    with pytest.raises(ConfigError, match=message):
        StageSpec(**{**fields, **changes})


def test_tiny_checkpoints_are_ordinary(checkpoint: Checkpoint) -> None:
    _, notes = AutoModelForCausalLM.from_pretrained(checkpoint("opt"), output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
