"""While a stage reads its weights, whoever follows the launch is told how far it has come."""

from __future__ import annotations

from pathlib import Path

import pytest

import dvrt
from dvrt.models.tiny import write_tiny
from dvrt.results import WorkerStatus
from dvrt.stages import load_progress


@pytest.mark.may_block
async def test_the_weights_come_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_progress, "INTERVAL_S", 0.0)
    model = write_tiny(tmp_path / "tiny", "llama", n_layers=4)
    news: list[WorkerStatus] = []
    launch = dvrt.launch(model, stages=2, device="cpu", in_process=True, on_progress=news.append)
    async with launch as engine:
        ready = {each.name: each for each in engine.status().workers}
        assert all(each.weights_bytes == each.weights_total for each in ready.values())
        assert [each.state for each in engine.events()].count("loading") == 2
    for name, last in ready.items():
        read = [each.weights_bytes for each in news if each.name == name and each.weights_total]
        assert read == sorted(read)
        assert 0 < read[0] < read[-1] == last.weights_bytes
