"""Two small clusters take turns; copies are compared with none."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dvrt.bench.replication import Load, _compare
from dvrt.models.tiny import write_tiny


def test_windows_take_turns_and_lags_are_seen(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "null", "gpt2", n_layers=2, hidden_size=16)
    load = Load(rows=2, prompt=4, output=20, windows=2)
    found = asyncio.run(
        _compare(model, load, batch_size=1, device="null", null_step_ms=2.0, stages=2)
    )
    assert len(found["slowdown"]["repeats"]) == 2
    assert found["without_round_ms"]["min"] >= 2.0
    assert found["lags"].total() > 0
