"""The paper's failure set-up at a small size: what each way back costs, and by equations."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.bench.recovery import judge_replication, measure_fig10, measure_fig11
from dvrt.bench.recovery_virtual import STAGES, Prices, Shape, Virtual
from dvrt.models.null_timing import NullTiming
from dvrt.planner.profile import open_profile

SHAPE = Shape(prompt=40, output=100, fail_at=70)
TIMING = NullTiming(
    decode_s=0.02, prompt_token_s=1e-4, entry_bytes=1000, start_s=0.3, read_s=1.0, load_s=0.1
)
PRICES = Prices(timing=TIMING, network=1e9, cold_start_s=2.0)


def test_a_loss_costs_what_its_way_back_costs(tmp_path: Path) -> None:
    found = measure_fig10(Virtual(tmp_path, PRICES), PRICES, SHAPE)
    for name in ("paper_none", "recompute", "respawn", "spare"):
        assert found[name]["ratio"] == pytest.approx(found[name]["predicted"], rel=0.02)
    assert found["spare"]["replace_s"] == pytest.approx(TIMING.load_s, abs=0.01)
    whole_s = TIMING.start_s + TIMING.read_s + TIMING.load_s
    assert found["respawn"]["replace_s"] == pytest.approx(whole_s, abs=0.01)
    assert found["paper_none"]["recomputed_tokens"] == SHAPE.prompt + SHAPE.fail_at
    assert found["spare"]["recomputed_tokens"] <= 2


def test_three_losses_cost_less_with_copies(tmp_path: Path) -> None:
    found = measure_fig11(Virtual(tmp_path, PRICES), SHAPE)
    assert found["gain"] > 1.1
    assert found["none"]["recomputed_tokens"] > found["ours"]["recomputed_tokens"]


def test_prices_are_those_of_the_profile() -> None:
    profile = open_profile("opt-66b-a100-80")
    timing = Prices.of(profile, start_s=0.1).timing
    layers = profile.model.layers // STAGES
    assert timing.read_s + timing.load_s == pytest.approx(profile.load_s(layers))
    assert timing.load_s < timing.read_s


def test_replication_buys_little_for_short_contexts() -> None:
    judged = judge_replication(TIMING, SHAPE)
    shares = judged["saved_share_at_token"]
    assert shares["1"]["exact"] < 0.05 < shares["70"]["exact"]
    assert 1 <= judged["little_below_token"] < 10
    assert judged["fast_saves_at_most"] < 0.05
