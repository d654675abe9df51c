"""Exact mode: a request's logits have the same bits whatever runs beside it, and where."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dvrt.errors import ConfigError
from dvrt.models.attention import attend_exactly
from dvrt.models.runner import Logits
from dvrt.models.selfcheck import check_exactness
from dvrt.models.tiny import FAMILIES, write_tiny
from tests.models.pipeline import Pipeline, same_bits

N_TOKENS = 5
Request = tuple[list[int], list[int]]


def make_requests(seed: int, n: int) -> list[Request]:
    """(prompt, the tokens that follow, whatever the logits say)."""
    draw = random.Random(seed)
    lengths = [1, 20, 64, 65, 130, 3, 190]
    return [
        (
            [draw.randrange(300) for _ in range(lengths[i % len(lengths)])],
            [draw.randrange(300) for _ in range(N_TOKENS)],
        )
        for i in range(n)
    ]


def alone(pipeline: Pipeline, request: Request) -> list[Logits]:
    prompt, tokens = request
    out = [pipeline.prompt(0, prompt)]
    for i, token in enumerate(tokens):
        out.append(pipeline.step(0, {0: (len(prompt) + i, token)})[0])
    return out


def together(pipeline: Pipeline, requests: list[Request], seed: int) -> list[list[Logits]]:
    """All requests in random slots, beginning one after the other at random steps."""
    draw = random.Random(seed)
    size = pipeline.spec.batch_size
    slots = draw.sample(range(pipeline.spec.n_slots), len(requests))
    begins = [draw.randrange(4) for _ in requests]
    out: list[list[Logits]] = [[] for _ in requests]
    for now in range(max(begins) + N_TOKENS + 1):
        for i, (prompt, _) in enumerate(requests):
            if begins[i] == now:
                out[i].append(pipeline.prompt(slots[i], prompt))
        for microbatch in range(pipeline.spec.n_microbatches):
            running = {
                slots[i] % size: i
                for i in range(len(requests))
                if slots[i] // size == microbatch and 0 < len(out[i]) <= N_TOKENS
            }
            work = {
                row: (len(requests[i][0]) + len(out[i]) - 1, requests[i][1][len(out[i]) - 1])
                for row, i in running.items()
            }
            for row, logits in (pipeline.step(microbatch, work) if work else {}).items():
                out[running[row]].append(logits)
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_companions_rows_order_and_splits(
    checkpoint: Callable[[str], Path], family: str, dtype: str
) -> None:
    directory = checkpoint(family)
    for batch_size, n_stages in ((1, 2), (3, 4), (8, 3)):
        shape = {"dtype": dtype, "n_microbatches": 2, "batch_size": batch_size}
        requests = make_requests(batch_size, min(2 * batch_size, 6))
        undisturbed = Pipeline(directory, 1, **shape)
        expected = [alone(undisturbed, request) for request in requests]
        found = together(Pipeline(directory, n_stages, **shape), requests, seed=batch_size)
        for one, other in zip(expected, found, strict=True):
            assert same_bits(one, other)


@pytest.mark.parametrize(
    ("hidden_size", "n_heads", "batch_size"), [(96, 6, 2), (80, 2, 5), (56, 7, 3)]
)
def test_odd_widths(tmp_path: Path, hidden_size: int, n_heads: int, batch_size: int) -> None:
    directory = write_tiny(
        tmp_path / "odd",
        "gpt2",
        n_layers=2,
        hidden_size=hidden_size,
        n_heads=n_heads,
        vocab_size=331,
    )
    requests = make_requests(1, batch_size)
    expected = [alone(Pipeline(directory, batch_size=batch_size), one) for one in requests]
    found = together(Pipeline(directory, 2, batch_size=batch_size), requests, seed=2)
    assert all(same_bits(one, other) for one, other in zip(expected, found, strict=True))


def test_stale_entries_do_not_show(checkpoint: Callable[[str], Path]) -> None:
    """A slot's second request computes what the first would have computed there."""
    pipeline = Pipeline(checkpoint("llama"))
    long, short = make_requests(4, 2)[1], make_requests(9, 1)[0]
    expected = alone(pipeline, short)
    alone(pipeline, long)
    assert same_bits(expected, alone(pipeline, short))


def test_fork_continues_like_the_original(checkpoint: Callable[[str], Path]) -> None:
    pipeline = Pipeline(checkpoint("qwen2"), 2, n_microbatches=2)
    prompt, tokens = make_requests(6, 3)[2]
    expected = alone(pipeline, (prompt, tokens))
    for stage in pipeline.stages:
        stage.fork(0, 11, len(prompt))
    found = [pipeline.step(1, {3: (len(prompt) + i, token)})[3] for i, token in enumerate(tokens)]
    assert same_bits(expected[1:], found)


def test_recovery_repeats_the_calls(checkpoint: Callable[[str], Path]) -> None:
    """Entries carried to another slot, the rest computed again: the bits are those of before."""
    pipeline = Pipeline(checkpoint("gpt_neox"), 2)
    prompt, tokens = make_requests(8, 4)[3]
    expected = alone(pipeline, (prompt, tokens))
    n_kept = len(prompt) + 2
    for stage in pipeline.stages:
        stage.write_entries(5, 0, stage.entries(0, 0, n_kept))
        stage.scrub(0)
    found = [pipeline.step(0, {5: (n_kept + i, token)})[5] for i, token in enumerate(tokens[2:])]
    assert same_bits(expected[3:], found)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama"])
def test_self_check_holds_and_leaves_nothing(
    checkpoint: Callable[[str], Path], family: str
) -> None:
    for stage in Pipeline(checkpoint(family), 2).stages:
        found = check_exactness(stage)
        assert found.holds, str(found)
        assert found.took_s < 0.5
        assert "holds" in str(found)
        assert not stage.arena.storage.any()


def test_self_check_notices(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel whose result depends on how many rows compute is found out."""
    runner = Pipeline(checkpoint("llama"), exact=False).stages[0]
    real = runner._forward.layers

    def depends_on_rows(hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return real(hidden, *rest) + 1e-6 * hidden.shape[0]

    monkeypatch.setattr(runner._forward, "layers", depends_on_rows)
    found = check_exactness(runner)
    assert not found.holds
    assert "idle companions" in str(found)


def test_attention_does_not_see_what_is_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        query = torch.randn(3, 8, 1, 32, generator=generator).to(dtype)
        key = torch.randn(3, 2, 1024, 32, generator=generator).to(dtype)
        value = torch.randn(3, 2, 1024, 32, generator=generator).to(dtype)
        mask = torch.zeros(3, 1, 1, 1024, dtype=dtype)
        mask[..., 100:] = float("-inf")
        whole = attend_exactly(query, key, value, mask, None)
        part = attend_exactly(query, key[:, :, :128], value[:, :, :128], mask[..., :128], None)
        assert torch.equal(whole, part)


def test_exact_mode_wants_one_thread(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="computes with one"):
        Pipeline(checkpoint("llama"), n_threads=2)
