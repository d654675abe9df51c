"""The same tokens, two oracles: transformers' own generate, and dvrt's own undisturbed run.

Whole clusters with real models, in this process; the pipeline's shape must never show in a token.
"""

from __future__ import annotations

import asyncio
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import dvrt
from dvrt.models.tiny import FAMILIES, write_tiny

N_LAYERS = 4
TIE = 1e-3
"""Where the two best logits of transformers are closer than this, either token is right."""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")

    @cache
    def make(family: str) -> Path:
        return write_tiny(root / family, family, n_layers=N_LAYERS)

    return make


def mixed_requests(n: int, seed: int, vocab_size: int = 307) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": [
                rng.randrange(vocab_size) for _ in range(rng.choice((1, 5, 17, 64, 65, 90)))
            ],
            "max_tokens": rng.randrange(1, 14),
        }
        for _ in range(n)
    ]


def run(model: Path, requests: list[dict[str, Any]], **options: Any) -> list[Any]:
    return asyncio.run(serve(model, requests, **options))


async def serve(model: Path, requests: list[dict[str, Any]], **options: Any) -> list[Any]:
    async with dvrt.launch(model, **{"in_process": True, "max_context": 192, **options}) as engine:
        wishes = [engine.complete(**{"ignore_eos": True, **request}) for request in requests]
        return await asyncio.gather(*wishes)


def check_against_generate(model: Path, requests: list[dict[str, Any]], got: list[Any]) -> int:
    """Compare greedy tokens with transformers'; the number of ties that went the other way."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    n_ties = 0
    for request, done in zip(requests, got, strict=True):
        n_prompt = len(request["prompt"])
        ids = torch.tensor([[*request["prompt"], *done.token_ids[:-1]]])
        with torch.inference_mode():
            logits = reference(ids).logits[0, n_prompt - 1 :].float()
        for row, token in zip(logits, done.token_ids, strict=True):
            best = torch.topk(row, 2).values
            if int(row.argmax()) != token:
                assert best[0] - row[token] < TIE, (token, best)
                n_ties += 1
    return n_ties


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("stages", [1, 2, 3, N_LAYERS])
def test_tokens_are_those_of_transformers(checkpoints: Any, family: str, stages: int) -> None:
    model, requests = checkpoints(family), mixed_requests(24, seed=stages)
    for request in requests:
        request["temperature"] = 0.0
    got = run(model, requests, stages=stages, batch_size=4)
    assert [len(done.token_ids) for done in got] == [r["max_tokens"] for r in requests]
    assert check_against_generate(model, requests, got) <= 1


def test_a_model_without_a_limit_of_positions_has_the_default_context(checkpoints: Any) -> None:
    """A prompt longer than any context that other tests ask for."""
    model = checkpoints("bloom")
    long = {"prompt": [7 * i % 307 for i in range(300)], "max_tokens": 8, "temperature": 0.0}
    requests = [long, {**long, "prompt": [1, 2, 3]}]
    got = run(model, requests, stages=2, batch_size=2, max_context=None)
    assert check_against_generate(model, requests, got) <= 1
    with pytest.raises(dvrt.RequestRejected, match="context is 2048 tokens; the prompt has 2041"):
        run(model, [{**long, "prompt": [1] * 2041}], stages=2, batch_size=2, max_context=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama", "qwen3"])
def test_logits_are_bit_identical_whatever_the_pipeline(
    checkpoints: Any, family: str, dtype: str
) -> None:
    """Greedy and seeded; log probabilities are compared as they are, bit by bit."""
    model, requests = checkpoints(family), mixed_requests(10, seed=7)
    for i, request in enumerate(requests):
        chosen = {"temperature": 0.0} if i % 2 else {"temperature": 0.9, "top_p": 0.9}
        request.update(chosen, seed=i, logprobs=3)
    outcomes = []
    shapes = [
        {"stages": 1, "microbatches": 1, "batch_size": 4},
        {"stages": 2, "microbatches": 3, "batch_size": 4},
        {"stages": N_LAYERS, "microbatches": N_LAYERS, "batch_size": 4},
        {"layers": (1, 3), "microbatches": 2, "batch_size": 4},
    ]
    for shape in shapes:
        order = list(range(len(requests)))
        random.Random(str(shape)).shuffle(order)
        done = run(model, [requests[i] for i in order], dtype=dtype, **shape)
        outcomes.append({i: done[place].samples[0].tokens for place, i in enumerate(order)})
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_a_seed_gives_its_text_alone_and_in_company(checkpoints: Any) -> None:
    model = checkpoints("llama")
    wish = {"prompt": [5, 6, 7], "max_tokens": 12, "temperature": 1.3, "seed": 42, "top_k": 50}
    alone = run(model, [wish], batch_size=4)
    company = run(model, [*mixed_requests(9, seed=1), wish], batch_size=4)
    assert alone[0].token_ids == company[-1].token_ids
    other = run(model, [{**wish, "seed": 43}], batch_size=4)
    assert other[0].token_ids != alone[0].token_ids


def test_samples_of_one_prompt_are_those_of_their_numbers(checkpoints: Any) -> None:
    """Sample i of n does not depend on n, on the rows there are, or on the other samples."""
    model = checkpoints("gpt2")
    wish = {"prompt": list(range(70)), "max_tokens": 9, "temperature": 1.0, "seed": 5}
    (many,) = run(model, [{**wish, "n": 5}], stages=2, microbatches=2, batch_size=1)
    (few,) = run(model, [{**wish, "n": 2}], batch_size=4)
    assert [s.token_ids for s in many.samples[:2]] == [s.token_ids for s in few.samples]
    assert len({s.token_ids for s in many.samples}) == 5


def test_fast_mode_keeps_to_transformers_too(checkpoints: Any) -> None:
    model, requests = checkpoints("llama"), mixed_requests(12, seed=3)
    for request in requests:
        request["temperature"] = 0.0
    got = run(model, requests, stages=2, exact=False, batch_size=4)
    assert check_against_generate(model, requests, got) <= 1
