"""Profiles: the file's form, what contradicts itself, fits, roofline and the shipped ones."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.errors import ConfigError
from dvrt.planner.catalog import GPUS, SHAPES, catalog_profiles, write_catalog
from dvrt.planner.imports import model_info_of, profile_from_model_info
from dvrt.planner.model_info import ModelInfo, read_model_info, write_model_info
from dvrt.planner.parts import LaunchFigures, RuntimeFigures
from dvrt.planner.profile import (
    Profile,
    open_profile,
    profile_from_json,
    read_profile,
    shipped_profiles,
    write_profile,
)
from dvrt.planner.roofline import read_gpu
from dvrt.planner.step_fit import StepFit, fit_steps


@pytest.fixture
def document() -> dict[str, Any]:
    return copy.deepcopy(open_profile("opt-66b-a100-80").to_json())


def without_fits(profile: Profile) -> dict[str, Any]:
    """Fits differ in the last digits from processor to processor."""
    document = profile.to_json()
    return {key: value for key, value in document.items() if key not in ("prompt", "token", "head")}


def test_the_shipped_files_are_what_the_script_writes(tmp_path: Path) -> None:
    written = write_catalog(tmp_path)
    assert sorted(path.stem for path in written) == shipped_profiles()
    assert len(written) == len(GPUS) * len(SHAPES) == 28
    for profile in catalog_profiles():
        shipped = open_profile(profile.name)
        assert without_fits(shipped) == without_fits(profile)
        for name in ("prompt", "token", "head"):
            found, made = getattr(shipped, name), getattr(profile, name)
            assert found.samples == made.samples
            assert found.coefficients == pytest.approx(made.coefficients, rel=1e-5, abs=1e-13)
        assert shipped.origin == "derived"
        assert shipped.note.startswith("Derived, not measured")


@pytest.mark.parametrize(
    ("name", "weights_gb", "kv_mb"),
    [
        ("gpt2-1.5b", 3, 0.307),
        ("opt-13b", 26, 0.819),
        ("opt-30b", 60, 1.376),
        ("opt-66b", 132, 2.359),
        ("bloom-176b", 352, 4.014),
        ("llama-3-8b", 16, 0.131),
        ("llama-3-70b", 141, 0.328),
    ],
)
def test_sizes_of_the_models(name: str, weights_gb: float, kv_mb: float) -> None:
    model = open_profile(f"{name}-a100-80").model
    assert model.weight_bytes / 1e9 == pytest.approx(weights_gb, rel=0.05)
    assert model.kv_bytes_per_token * model.layers / 1e6 == pytest.approx(kv_mb, abs=5e-4)


def test_times_are_those_of_the_stated_shares_of_peak() -> None:
    """OPT-66B, 8 prompts of 1000 at half of 312 Tflop/s; its weights at 70 % of 2039 GB/s."""
    profile = open_profile("opt-66b-a100-80")
    layers, parameters = 64, profile.model.layer_weight_bytes / 2
    weights_s = 2 * layers * parameters * 8000 / 156e12
    attention_s = 4 * layers * 500 * 9216 * 8000 / 156e12
    assert layers * profile.prompt.seconds(8, 1000) == pytest.approx(weights_s + attention_s)
    read = layers * (2 * parameters + 8 * 1000 * profile.model.kv_bytes_per_token)
    assert layers * profile.token.seconds(8, 1000) == pytest.approx(read / (0.7 * 2.039e12))


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = open_profile("llama-3-8b-h100")
    path = tmp_path / "profile.json"
    write_profile(path, profile)
    assert read_profile(path) == profile
    assert open_profile(str(path)) == profile


def test_what_the_runtime_costs_is_in_the_file_if_it_was_measured(tmp_path: Path) -> None:
    bare = open_profile("llama-3-8b-h100")
    assert "runtime" not in bare.to_json()
    runtime = RuntimeFigures(step_s=1e-4, hop_s=0.0, detect_s=0.01, restart_s=0.5, token_factor=1.2)
    path = tmp_path / "profile.json"
    write_profile(path, replace(bare, runtime=runtime))
    assert read_profile(path).runtime == runtime


def test_files_from_before_a_field_was_there_are_read(document: dict[str, Any]) -> None:
    """Whatever has a default came later than some files."""
    runtime = RuntimeFigures(step_s=1e-4, hop_s=0.0, detect_s=0.01, restart_s=0.5)
    document["runtime"] = asdict(runtime)
    for name in ("alone_factor", "ship_factor", "stages", "token_factor", "is_exact"):
        del document["runtime"][name]
    del document["model"]["positions"]
    del document["machine"]["hop_s"]
    for name in ("prompt_stage", "token_stage", "chunk_tokens"):
        document.pop(name, None)
    profile = profile_from_json(document)
    assert profile.runtime == runtime
    assert profile.model.positions is None


def test_the_options_of_a_measurement_are_in_the_file(tmp_path: Path) -> None:
    launch = LaunchFigures(device="cpu", dtype="float32", threads=2, exact=False)
    path = tmp_path / "profile.json"
    write_profile(path, replace(open_profile("llama-3-8b-h100"), launch=launch))
    assert read_profile(path).launch == launch


@pytest.mark.parametrize(
    ("name", "positions"),
    [("gpt2-1.5b", 1024), ("opt-13b", 2048), ("bloom-176b", None), ("llama-3-8b", 8192)],
)
def test_shipped_profiles_know_the_positions(name: str, positions: int | None) -> None:
    assert open_profile(f"{name}-h100").model.positions == positions


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("model", "layers"), -3, "model.layers"),
        (("model", "layers"), 2.5, "model.layers"),
        (("model", "positions"), 2048.5, "model.positions is 2048.5; it must be a whole number"),
        (("model", "positions"), 0, "model.positions"),
        (("machine", "memory_bytes"), 24e9, "memory_bytes is 24000000000.0; .* a whole number"),
        (("launch",), {"device": "cpu"}, "launch: missing fields .*dtype"),
        (
            ("launch",),
            {"device": "cpu", "dtype": "float32", "threads": 0, "exact": True},
            "launch.threads",
        ),
        (
            ("launch",),
            {"device": "cpu", "dtype": "", "threads": 1, "exact": True},
            "launch.dtype",
        ),
        (
            ("launch",),
            {"device": "cpu", "dtype": "float32", "threads": 1, "exact": "no"},
            "launch.exact",
        ),
        (("model", "kv_bytes_per_token"), 100, "contradicts"),
        (("machine", "memory_bytes"), 0, "machine.memory_bytes"),
        (("machine", "network"), math.inf, "machine.network"),
        (("machine", "price_per_hour"), -1, "price_per_hour"),
        (("prompt", "max_relative_error"), 0.5, "contradicts"),
        (("prompt", "coefficients"), [0, 0, 0, 0], "prompt"),
        (("token", "coefficients"), [1e-3, -1e-3, 0, 0], "token"),
        (("token", "samples"), [], "token"),
        (("token", "samples"), [[8, 1000, -1.0]], "token"),
        (("token", "samples"), "none", "token"),
        (("token", "samples"), [[8, 9, 1.0], [8, 9, 2.0]], "two times for one step"),
        (("machine", "hop_s"), -1e-5, "machine.hop_s"),
        (("recovery", "load_s"), 0, "recovery.load_s"),
        (("recovery", "restore"), -2.0, "recovery.restore"),
        (("runtime",), {"step_s": 1.0}, "runtime: missing fields .*hop_s"),
        (("prompt_stage",), {"samples": []}, "prompt_stage"),
        (("chunk_tokens",), -1, "chunk_tokens"),
        (("chunk_tokens",), 1.5, "chunk_tokens"),
        (("origin",), "guessed", "origin"),
        (("schema",), "other", "schema"),
        (("extra",), 1, "extra"),
        (("model",), None, "model"),
    ],
)
def test_a_profile_that_cannot_be(
    document: dict[str, Any], place: tuple[str, ...], value: object, says: str
) -> None:
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(ConfigError, match=says):
        profile_from_json(document)


@pytest.mark.parametrize("part", ["model", "machine", "recovery", "prompt", "token", "head"])
def test_a_missing_field_is_named(document: dict[str, Any], part: str) -> None:
    field = next(iter(document[part]))
    del document[part][field]
    with pytest.raises(ConfigError, match=field):
        profile_from_json(document)
    del document[part]
    with pytest.raises(ConfigError, match=part):
        profile_from_json(document)


def test_prompt_and_token_batches_must_agree(document: dict[str, Any]) -> None:
    fit = fit_steps([(3, 100, 0.1)], ["1"])
    document["token"] = fit.to_json()
    with pytest.raises(ConfigError, match="both for each"):
        profile_from_json(document)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gpt2-1.5b-a100-80"):
        open_profile("nothing")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        read_profile(broken)
    with pytest.raises(ConfigError, match="No such file"):
        read_profile(tmp_path / "absent.json")


def test_more_gpus_divide_times_and_add_their_reductions() -> None:
    one = open_profile("opt-66b-a100-80")
    four = one.with_gpus(4)
    assert four.machine.memory_bytes == 320_000_000_000
    assert four.machine.price_per_hour == 18.52
    assert four.machine.network == one.machine.network
    quarter = one.prompt.seconds(8, 1000) / 4
    reduced = 2 * 0.75 * 2 * 9216 * 2 / 300e9 * 8000
    assert four.prompt.seconds(8, 1000) == pytest.approx(quarter + reduced)
    assert four.origin == "derived"
    assert "Extrapolated" in four.note
    assert one.with_gpus(1) is one
    with pytest.raises(ConfigError, match="start from one of 1"):
        four.with_gpus(8)
    with pytest.raises(ConfigError, match="at least one"):
        one.with_gpus(0)


@given(
    coefficients=st.tuples(*[st.floats(1e-6, 1e-3)] * 4),
    noise=st.lists(st.floats(0.97, 1.03), min_size=24, max_size=24),
)
def test_a_fit_comes_back_from_its_samples(
    coefficients: tuple[float, ...], noise: list[float]
) -> None:
    grid = [(b, n) for b in (1, 2, 4, 8, 16, 32) for n in (128, 500, 1000, 2000)]
    exact = [
        (b, n, sum(c * f for c, f in zip(coefficients, (1, b, b * n, b * n * n), strict=True)))
        for b, n in grid
    ]
    assert fit_steps(exact).max_relative_error < 1e-4
    noisy = [(b, n, s * factor) for (b, n, s), factor in zip(exact, noise, strict=True)]
    fit = fit_steps(noisy)
    assert min(fit.coefficients) >= 0
    assert fit.max_relative_error < 0.1


def test_a_falling_curve_is_fitted_without_negative_terms() -> None:
    fit = fit_steps([(1, 100, 2.0), (2, 100, 1.9), (4, 100, 1.8)])
    assert min(fit.coefficients) >= 0
    assert 0 < fit.max_relative_error < 0.1


def test_parts_of_a_step_are_fitted_against_the_whole() -> None:
    """One part that noise made tiny must not outweigh those that show what it costs."""
    samples = [(b, 100, 0.5) for b in (1, 2, 4, 8)] + [(16, 100, 1e-6)]
    own = fit_steps(samples, ["1"])
    against_whole = fit_steps(samples, ["1"], [2.0] * 5)
    assert own.coefficients[0] < 1e-5
    assert against_whole.coefficients[0] == pytest.approx(0.4, rel=1e-3)


def test_a_fit_of_nothing() -> None:
    with pytest.raises(ConfigError, match="no samples"):
        fit_steps([])
    with pytest.raises(ConfigError, match="coefficients"):
        StepFit(samples=((1, 1, 1.0),), coefficients=(1.0,), max_relative_error=0.0)


def test_a_roofline_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    lines = {
        "name": '"L4"',
        "peak_flops": "121e12",
        "memory_bandwidth": "300e9",
        "memory_bytes": "24000000000",
        "host_memory_bytes": "100000000000",
        "host_to_device": "25e9",
        "device_to_host": "25e9",
        "network": "3e9",
        "gpu_link": "25e9",
    }
    path.write_text("[gpu]\n" + "\n".join(f"{k} = {v}" for k, v in lines.items()))
    assert read_gpu(path).memory_bandwidth == 300e9
    for wrong, says in (
        ("speed = 1", "speed"),
        ("compute_share = 1.5", "compute_share"),
        ("layer_overhead_s = -1", "layer_overhead_s"),
    ):
        path.write_text("[gpu]\n" + "\n".join(f"{k} = {v}" for k, v in lines.items()))
        path.write_text(path.read_text() + f"\n{wrong}\n")
        with pytest.raises(ConfigError, match=says):
            read_gpu(path)
    path.write_text("[gpu]\nname = 'L4'\n")
    with pytest.raises(ConfigError, match="lacks"):
        read_gpu(path)
    path.write_text("gpu = 3")
    with pytest.raises(ConfigError, match="one table"):
        read_gpu(path)


def test_model_info_goes_out_and_comes_in(tmp_path: Path) -> None:
    profile = open_profile("opt-30b-v100-16").with_gpus(4)
    info = model_info_of(profile, batches=(4, 8), prompt_length=1000, context=1100)
    path = tmp_path / "model_info.json"
    write_model_info(path, (info,))
    assert json.loads(path.read_text())["OPT-30B"]["batch_sizes"] == [4, 8]
    assert read_model_info(path, "OPT-30B") == info
    back = profile_from_model_info(info, profile, prompt_length=1000)
    assert back.origin == "imported"
    assert 48000 * back.prompt.seconds(8, 1000) == pytest.approx(info.prompt_ms[1])
    assert back.prompt.batches == (4, 8)
    with pytest.raises(ConfigError, match="OPT-30B"):
        read_model_info(path, "OPT-31B")


@pytest.mark.parametrize(
    "entry",
    [
        {"batch_sizes": [4, 8], "measurements_per_bs": {"4": [1, 2]}},
        {"batch_sizes": [8, 4], "measurements_per_bs": {"8": [1, 2], "4": [1, 2]}},
        {"batch_sizes": [4], "measurements_per_bs": {"4": [1]}},
        {"batch_sizes": [4], "measurements_per_bs": {"4": [-1, 2]}},
        {"batch_sizes": [4]},
        [],
        {"batch_sizes": [], "measurements_per_bs": {}},
    ],
)
def test_model_info_that_contradicts_itself(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "model_info.json"
    path.write_text(json.dumps({"M": entry}))
    with pytest.raises(ConfigError, match="M"):
        read_model_info(path, "M")


def test_model_info_needs_a_time_for_each_batch() -> None:
    with pytest.raises(ConfigError, match="each batch size"):
        ModelInfo(model="M", batch_sizes=(1, 2), prompt_ms=(1.0,), token_ms=(1.0, 2.0))
