"""Tensors read ahead are those that a stage gets, and are let go of once it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dvrt.errors import ModelError
from dvrt.models import held_weights
from dvrt.models.checkpoint import read_tensor_index
from dvrt.models.held_weights import HeldWeights
from dvrt.models.runner import StageRunner
from dvrt.models.spec import StageSpec
from dvrt.models.tiny import write_tiny

CPU = torch.device("cpu")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "model", "gpt2", n_layers=4)


def spec(directory: Path, first: int, stop: int) -> StageSpec:
    return StageSpec(
        directory=str(directory),
        first=first,
        stop=stop,
        n_layers=4,
        dtype="float32",
        n_microbatches=1,
        batch_size=4,
        max_context=32,
    )


def logits(runner: StageRunner) -> bytes:
    hidden = torch.linspace(-1, 1, 4 * runner.hidden_size).view(4, 1, -1)
    out = runner.decode(0, [0] * 4, hidden)
    return bytes(runner.decode_logits(out, range(4)).tobytes())


def test_a_stage_computes_with_what_was_held(directory: Path) -> None:
    held = HeldWeights()
    entries = read_tensor_index(directory)
    assert held.hold(entries)
    stage = spec(directory, 2, 4)
    expected = logits(StageRunner(stage))
    for file in directory.glob("*.safetensors"):  # nothing is read again but the index
        size = file.stat().st_size
        start = min(entry.offset for entry in entries.values() if entry.file == file)
        with file.open("r+b") as opened:
            opened.seek(start)
            opened.write(bytes(size - start))
    with_held = StageRunner(stage, held=held)
    held.drop()
    assert logits(with_held) == expected
    assert logits(StageRunner(stage, held=held)) != expected


def test_what_is_not_there_is_read(directory: Path) -> None:
    entries, held = read_tensor_index(directory), HeldWeights()
    names = list(entries)
    asked: list[bool] = []
    assert held.hold(entries, is_over=lambda: len(asked) == 3 or asked.append(True) is not None)
    assert [held.find(entries[name]) is not None for name in names[:4]] == [True] * 3 + [False]
    stage = spec(directory, 0, 4)
    assert StageRunner(stage, held=held).weights_bytes == StageRunner(stage).weights_bytes


def test_it_asks_for_half_of_the_memory_at_most(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, held = read_tensor_index(directory), HeldWeights()
    total = sum(entry.nbytes for entry in entries.values())
    monkeypatch.setattr(held_weights, "available_bytes", lambda: 2 * total - 1)
    assert not held.hold(entries)
    assert held.find(next(iter(entries.values()))) is None
    monkeypatch.setattr(held_weights, "available_bytes", lambda: 2 * total)
    assert held.hold(entries)


def test_nothing_is_held_once_it_was_dropped(directory: Path) -> None:
    entries, held = read_tensor_index(directory), HeldWeights()
    held.drop()
    held.hold(entries)
    assert all(held.find(entry) is None for entry in entries.values())


def test_a_tensor_that_cannot_be_read_is_named(directory: Path) -> None:
    entries = read_tensor_index(directory)
    last = max(entries.values(), key=lambda entry: entry.offset)
    with last.file.open("r+b") as opened:
        opened.truncate(last.offset + 1)
    with pytest.raises(ModelError, match=last.name):
        HeldWeights().hold(entries)
