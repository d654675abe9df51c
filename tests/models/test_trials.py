"""A model that cannot be cut where its plan says is refused as it loads, never served wrongly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dvrt.errors import ModelError
from dvrt.models import families, loader
from dvrt.models.tiny import write_tiny
from tests.models.pipeline import Pipeline

Checkpoint = Callable[[str], Path]


def test_factors_at_the_entrance_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Granite multiplies what enters its base model: harmless once, wrong at each stage."""
    directory = write_tiny(tmp_path / "a", "granite", settings={"embedding_multiplier": 3.0})
    Pipeline(directory, 2)
    monkeypatch.setattr(loader, "_ENTRY_FACTORS", ())
    Pipeline(directory, 1)
    with pytest.raises(ModelError, match=r"layers \[2, 4\): it changes hidden states outside"):
        Pipeline(directory, 2)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_positions_added_twice_are_noticed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    cut = families.ADAPTED[family]
    first = tuple(name for name in cut.first if name not in cut.additive)
    wrong = dataclasses.replace(cut, first=first, additive=())
    monkeypatch.setitem(families.ADAPTED, family, wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="changes hidden states outside"):
        Pipeline(checkpoint(family), 2)


def test_attention_of_another_kind_is_noticed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that takes another scale than transformers' own attention is off, and says so."""
    real = torch.nn.functional.scaled_dot_product_attention

    def other_scale(*args: torch.Tensor, scale: float | None, **kwargs: object) -> torch.Tensor:
        return real(*args, scale=2 * (scale or 0.1), **kwargs)

    monkeypatch.setattr("dvrt.models.attention.scaled_dot_product_attention", other_scale)
    with pytest.raises(ModelError, match="its attention is not served: a layer is off by"):
        Pipeline(checkpoint("llama"))


def test_families_that_need_a_cache_of_another_kind(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dvrt.models.cache.ProbeCache.seen",
        property(lambda self: {}, lambda *_: None),
        raising=False,
    )
    with pytest.raises(ModelError, match="do not keep one log each"):
        Pipeline(checkpoint("llama"))
