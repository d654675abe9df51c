"""What benchmarks print beside their figures: the planner's prediction and its error."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.bench import serve
from dvrt.bench.pipeline import N_STAGES, STEP_MS, Window, _beside
from dvrt.bench.profile_steps import StepSamples, fit_samples
from dvrt.bench.serve import Run, Wish, _predict, _summary


def test_a_pipeline_that_loses_a_tenth() -> None:
    ideal = 1000 / STEP_MS
    windows = [Window(busy=0.9, hop_us=100.0, tokens_per_s=share * ideal) for share in (0.8, 0.9)]
    found = _beside(windows, N_STAGES, 1000)
    assert found["predicted_tokens_per_s"] == pytest.approx(ideal)
    assert found["predicted_busy_fraction"] == 1.0
    assert found["prediction_error"] == pytest.approx(1 / 0.85 - 1)


def test_serving_has_predictions_for_its_own_sides_only() -> None:
    runs = [Run(seconds=2.0, n_tokens=200)]
    ours = _summary(runs, [150.0, 110.0, 120.0])
    assert ours["predicted_tokens_per_s"]["median"] == 120.0
    assert ours["prediction_error"] == pytest.approx(0.2)
    assert "prediction_error" not in _summary(runs, [])


def test_serving_is_predicted_from_step_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen equal requests in one microbatch: prompts, then laps; fast mode computes less."""
    from dvrt.models.tiny import write_tiny

    model = write_tiny(tmp_path / "tiny", n_layers=4)
    asked: list[bool] = []

    def fits(directory: Path, *, exact: bool) -> object:
        asked.append(exact)
        return fit_samples(
            StepSamples(
                prompts=[(16, 64, 0.16), (16, 128, 0.32)],
                prompt_layer=[(16, 64, 0.04), (16, 128, 0.08)],
                tokens=[(16, 64, 0.004), (16, 128, 0.004)],
                token_layer=[(16, 64, 0.001), (16, 128, 0.001)],
                ends=[(16, 1, 0.002)],
            )
        )

    monkeypatch.setattr(serve, "_measure_fits", fits)
    found = _predict(model, [Wish(prompt=[1] * 32, n_tokens=11)] * 16)
    assert asked == [True, False]
    prompts_s = 16 * (0.01 + 0.002)
    laps = 8 + 10
    assert found["one_stage"] == pytest.approx(176 / (prompts_s + laps * 0.006), rel=0.01)
    assert found["one_stage_fast"] > found["one_stage"]
    assert found["two_stages"] > found["one_stage"]
