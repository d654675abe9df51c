"""Pipelines whose stages share one GPU: the tokens of one stage, and of transformers' generate."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.models.tiny import write_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.may_block, pytest.mark.timeout(300)]

TIE = 1e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("gpu") / "tiny", "gpt2", n_layers=4)


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(300) for _ in range(rng.choice((1, 17, 64, 65)))] for _ in range(8)]


async def tokens(model: Path, **options: Any) -> list[list[int]]:
    found = []
    async with dvrt.launch(model, max_context=192, dtype="float32", **options) as engine:
        for prompt in prompts():
            done = await engine.complete(prompt, max_tokens=12, temperature=0.0, ignore_eos=True)
            found.append(list(done.token_ids))
    return found


@pytest.mark.parametrize("stages", [2, 4])
async def test_stages_on_one_gpu_make_the_tokens_of_one_stage(model: Path, stages: int) -> None:
    assert await tokens(model, stages=stages, device="cuda") == await tokens(
        model, stages=1, device="cuda"
    )


async def test_the_tokens_are_those_of_transformers(model: Path) -> None:
    """Equal up to where transformers' own two best logits are nearly tied."""
    import torch
    from transformers import AutoModelForCausalLM

    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to("cuda")
    found = await tokens(model, stages=2, device="cuda")
    for prompt, got in zip(prompts(), found, strict=True):
        known = list(prompt)
        for token in got:
            with torch.inference_mode():
                logits = reference(torch.tensor([known], device="cuda")).logits[0, -1]
            best = torch.topk(logits, 2).values
            if token != int(logits.argmax()):
                assert float(best[0] - best[1]) < TIE
            known.append(token)
