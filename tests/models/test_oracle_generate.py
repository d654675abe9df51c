"""Greedy tokens equal those of transformers' ``generate``, for every family and split."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dvrt.models.tiny import FAMILIES, write_tiny
from tests.models.pipeline import Pipeline

N_TOKENS = 12
GAP = 1e-3
LENGTHS = (1, 3, 17, 64, 65, 70, 130, 150)


def make_prompts(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    prompts = [[draw.randrange(300) for _ in range(length)] for length in LENGTHS]
    draw.shuffle(prompts)
    return prompts


def generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=N_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def is_tie(model: PreTrainedModel, context: list[int]) -> bool:
    with torch.inference_mode():
        best = model(torch.tensor([context])).logits[0, -1].topk(2).values
    return bool(best[0] - best[1] < GAP)


def count_ties(
    model: PreTrainedModel, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]
) -> int:
    """How many rows part at a tie; fails where they part elsewhere."""
    ties = 0
    for prompt, mine, other in zip(prompts, ours, theirs, strict=True):
        if mine == other:
            continue
        at = next(i for i, pair in enumerate(zip(mine, other, strict=True)) if len(set(pair)) > 1)
        assert is_tie(model, prompt + other[:at]), f"token {at} of {len(prompt)} + {N_TOKENS}"
        ties += 1
    return ties


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_split(checkpoint: Callable[[str], Path], family: str) -> None:
    directory = checkpoint(family)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompts = make_prompts(seed=len(family))
    theirs = [generate(model, prompt) for prompt in prompts]
    assert len({tuple(row) for row in theirs}) > 4  # the model is no constant
    for n_stages in (1, 2, 3, 4):
        ours = Pipeline(directory, n_stages).generate(prompts, N_TOKENS)
        assert count_ties(model, prompts, ours, theirs) <= 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_fast_mode(checkpoint: Callable[[str], Path], family: str) -> None:
    directory = checkpoint(family)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompts = make_prompts(seed=3)
    theirs = [generate(model, prompt) for prompt in prompts]
    ours = Pipeline(directory, 2, exact=False, n_threads=2).generate(prompts, N_TOKENS)
    assert count_ties(model, prompts, ours, theirs) <= 1


def test_chunk_size_is_free(checkpoint: Callable[[str], Path]) -> None:
    prompts = make_prompts(seed=5)
    usual = Pipeline(checkpoint("qwen3")).generate(prompts, 4)
    for size in (16, 48, 128):
        assert Pipeline(checkpoint("qwen3"), 2, chunk_tokens=size).generate(prompts, 4) == usual


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma", {"num_key_value_heads": 1, "head_dim": 16}),
        ("phi", {"num_key_value_heads": 2}),
        ("olmo2", {"num_key_value_heads": 2}),
        ("starcoder2", {"num_key_value_heads": 2, "sliding_window": None}),
        ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 2.0}),
        ("cohere", {"logit_scale": 0.3, "num_key_value_heads": 2}),
        (
            "youtu",
            {
                "num_key_value_heads": 4,
                "q_lora_rank": 32,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 16,
            },
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ],
)
def test_other_families_by_their_plan(
    tmp_path: Path, family: str, settings: dict[str, object]
) -> None:
    """Factors at both ends, latent attention, widths that differ: all in one way."""
    directory = write_tiny(tmp_path / family, family, n_layers=3, settings=settings)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompts = make_prompts(seed=11)[:4]
    theirs = [generate(model, prompt) for prompt in prompts]
    for n_stages in (1, 3):
        ours = Pipeline(directory, n_stages, batch_size=4).generate(prompts, N_TOKENS)
        assert count_ties(model, prompts, ours, theirs) <= 1
