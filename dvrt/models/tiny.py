"""Random-weight checkpoints of every family, written to a directory; for tests, demos and trials.

Every parameter is drawn at random, norms and biases too, so that one that is lost or swapped shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("gpt2", {"n_inner": None}),
    "opt": ("opt", {"word_embed_proj_dim": 64}),
    "opt-350m": ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    "bloom": ("bloom", {}),
    "llama": ("llama", {"num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    "mistral": ("mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "gpt_neox": ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                  "partial_rotary_factor": 0.25}}),
}  # fmt: skip
"""Name -> model type and the settings that make the family what it is."""


def write_tiny(
    directory: str | Path,
    family: str = "llama",
    *,
    n_layers: int = 4,
    hidden_size: int = 64,
    n_heads: int = 4,
    vocab_size: int = 307,
    max_positions: int = 512,
    dtype: str = "float32",
    seed: int = 0,
    max_shard: str = "5GB",
    tokenizer: bool = False,
    generation: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint and return its directory.

    ``tokenizer`` adds one that maps each UTF-8 byte to a token (0 to 255; 256 ends a text).
    ``generation`` becomes generation_config.json, ``settings`` go into config.json.
    """
    directory = Path(directory)
    model = make_tiny(
        family,
        n_layers=n_layers,
        hidden_size=hidden_size,
        n_heads=n_heads,
        vocab_size=vocab_size,
        max_positions=max_positions,
        seed=seed,
        settings=settings,
    )
    with _no_progress_bar():
        model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard)
    (directory / "generation_config.json").write_text(json.dumps(dict(generation or {})))
    if tokenizer:
        write_byte_tokenizer(directory)
    return directory


def make_tiny(
    family: str,
    *,
    n_layers: int = 4,
    hidden_size: int = 64,
    n_heads: int = 4,
    vocab_size: int = 307,
    max_positions: int = 512,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """The model itself, in float32 and evaluation mode."""
    model_type, own = FAMILIES.get(family, (family, {}))
    config = AutoConfig.for_model(
        model_type,
        **{
            "num_hidden_layers": n_layers,
            "hidden_size": hidden_size,
            "num_attention_heads": n_heads,
            "vocab_size": vocab_size,
            **({} if model_type == "bloom" else {"max_position_embeddings": max_positions}),
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **_widths(model_type, hidden_size),
            **own,
            **(settings or {}),
        },
    )
    make: Any = AutoModelForCausalLM
    model: PreTrainedModel = make.from_config(config)
    _randomise(model, seed)
    model.train(mode=False)
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    bars: Any = transformers_logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _widths(model_type: str, hidden_size: int) -> dict[str, Any]:
    """The inner width of the feed-forward part, where the family takes one."""
    if model_type == "opt":
        return {"ffn_dim": 4 * hidden_size, "word_embed_proj_dim": hidden_size}
    if model_type in ("gpt2", "bloom"):
        return {}
    return {"intermediate_size": 2 * hidden_size}


def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw all parameters; matrices keep the scale of their inputs, so that logits spread well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))


def write_byte_tokenizer(directory: Path) -> None:
    """Write a fast tokenizer of 256 byte tokens and an end-of-text token, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*alphabet, "<|end|>"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=core, eos_token="<|end|>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(directory)
