"""The same schedules with a real model in exact mode: real keys and values, real arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.chaos.campaign import Campaign
from tests.chaos.conftest import N_LAYERS

STEP_S = 0.02
N_SEEDS = 100
BLOCK = 10


@pytest.fixture
def real(model: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """In virtual time a step of the CPU takes as long as one of the null device."""
    monkeypatch.setattr("dvrt.stages.stage.step_cost_s", lambda order, step: STEP_S)
    fixed = {"device": "cpu", "chunk_tokens": 16}
    return Campaign(model=model, n_layers=N_LAYERS, options=fixed)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=[pytest.mark.slow, pytest.mark.chaos] if first else [])
        for first in range(0, N_SEEDS, BLOCK)
    ],
)
@pytest.mark.timeout(300)
def test_a_hundred_seeds_on_a_real_model(real: Campaign, first: int) -> None:
    n = BLOCK if first else 3
    tally = real.run(range(first, first + n))
    scripts = [f"{each.faults}\n{each.schedule.to_json()}" for each in tally.failures]
    assert scripts == []
    assert tally.n_whole > 2 * n and tally.injected.total() > n
