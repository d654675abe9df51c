"""The null device's times against the profile that they come from, and a small run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.bench.null_times import stage_timing, write_timing
from dvrt.bench.swap import Load, _bound, _long, _virtual_s
from dvrt.models.null_timing import NullTiming, read_timing
from dvrt.planner.profile import open_profile


@pytest.mark.parametrize("name", ["opt-66b-a100-80", "bloom-176b-a100-80"])
def test_times_are_those_of_the_profile(name: str, tmp_path: Path) -> None:
    profile = open_profile(name).with_gpus(2)
    timing = stage_timing(profile, 10)
    for batch, context in ((1, 1), (8, 500)):
        expected = profile.stage_token_s(10, batch, context)
        assert timing.decode_step_s([context - 1] * batch) == pytest.approx(expected, rel=1e-6)
    prompt = timing.chunk_step_s(0, 1000)
    assert prompt + profile.head_s(1) == pytest.approx(
        profile.stage_prompt_s(10, 1, 1000), rel=2e-3
    )
    assert read_timing(write_timing(tmp_path / "times.toml", timing)) == timing


def test_the_bound_is_two_where_all_copies_hide() -> None:
    timing = NullTiming(decode_s=0.01, entry_bytes=1000)
    assert _bound(timing, 1e9, range(1, 100), 4) == 2
    assert _bound(timing, 1e7, range(1, 100), 4) < 1.2


def test_a_run_comes_close_to_its_bound(tmp_path: Path) -> None:
    timing = NullTiming(decode_s=0.01, prompt_token_s=1e-5, entry_bytes=1000)
    load = Load(stages=3, microbatches=3, requests=24, prompt=16, output=32)
    plain_s, _ = _virtual_s(tmp_path, timing, load, 4)
    bandwidth = 24_000_000
    swapped_s, _ = _virtual_s(tmp_path, timing, load, 8, swap=True, swap_bandwidth=bandwidth)
    bound = _bound(timing, bandwidth, range(17, 49), 4)
    assert 1.3 < bound < 1.9
    assert 0.9 < plain_s / swapped_s / bound <= 1.01


def test_long_contexts_are_refused_by_the_runtime_itself(tmp_path: Path) -> None:
    profile = open_profile("opt-66b-a100-80").with_gpus(2)
    found = _long(tmp_path, stage_timing(profile, 16), 4, profile.machine.host_to_device)
    assert found["refused"]
    assert 0.1 < found["gain_predicted"] < 0.2
    assert "contexts of 1 to 1210 tokens at batch size 16: 0.24 times" in found["why"]
    assert "swap is refused" in found["why"]
