"""``profile``: what it measures on a tiny model, what it derives and converts, what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

import dvrt
from dvrt.bench import profiler
from dvrt.bench.profile_hops import hop_s
from dvrt.bench.profile_links import LinkFigures, disk_rate
from dvrt.bench.profile_runtime import Replaced, RuntimeProbe, RuntimeSamples, runtime_figures
from dvrt.bench.profile_steps import layer_share, relative_errors
from dvrt.bench.stage_spans import StageSpan, read_spans
from dvrt.cli.plan import plan
from dvrt.cli.profile import profile
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError, ModelError
from dvrt.models.null_timing import NullTiming
from dvrt.planner.model_info import read_model_info
from dvrt.planner.parts import LaunchFigures
from dvrt.planner.profile import open_profile, read_profile
from dvrt.planner.shapes import open_shape
from dvrt.planner.step_fit import fit_steps

ROOT = Path(__file__).parents[2]
LINKS = LinkFigures(
    memcpy=1e10,
    host_to_device=1e10,
    device_to_host=1e10,
    tcp=2e9,
    shm=5e9,
    restore=4e9,
    disk=1e9,
    hop_s=5e-5,
)


def spans(rows: int, *seconds: float, chunks: int = 0) -> list[StageSpan]:
    """A step of so many rows at each stage."""
    return [
        StageSpan(stage=stage, rows=rows, chunks=chunks, seconds=each)
        for stage, each in enumerate(seconds)
    ]


SERVED = RuntimeSamples(
    probe=RuntimeProbe(stages=2, batch=4),
    laps_s=[9.0],
    replaced=[Replaced(detect_s=0.02, ready_s=3.0)],
    spans=spans(4, 1e-6, 1e-6) + spans(1, 1e-6, 1e-6) + spans(0, 1e-6, 1e-6, chunks=1),
)
ALONE = {(0, 1): 1, (1, 0): 3}
"""A request of four tokens: (rows, chunks) -> steps."""
QUICK = ("--rounds", "3", "--batch-sizes", "1,4", "--prompt-lengths", "16,40")
GPU = """
[gpu]
name = "L4"
peak_flops = 121e12
memory_bandwidth = 300e9
memory_bytes = 24000000000
host_memory_bytes = 100000000000
host_to_device = 25e9
device_to_host = 25e9
network = 3e9
gpu_link = 25e9
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dvrt.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("models") / "tiny", n_layers=3, max_positions=128)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """The command, with bandwidths and launches that cost no time; in a folder of its own."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiler, "measure_links", lambda device, directory: LINKS)
    monkeypatch.setattr(profiler, "time_launch", lambda blueprint: 7.0)
    monkeypatch.setattr(profiler, "probe_runtime", lambda blueprint, probe: SERVED)
    app = typer.Typer()
    app.command()(profile)
    app.command("plan")(plan)

    def call(*arguments: str) -> str:
        app([str(each) for each in arguments], standalone_mode=False)
        return capsys.readouterr().out

    return call


def unwrapped(text: str) -> str:
    """Titles break where the numbers below them happen to make a table narrow."""
    return " ".join(text.split())


def test_the_measured_profile_of_a_tiny_model(run: Any, model: Path, tmp_path: Path) -> None:
    out = run("profile", model, "--device", "cpu", *QUICK)
    made = read_profile(tmp_path / "tiny-cpu.json")
    assert made.origin == "measured"
    assert made.chunk_tokens == 64
    assert made.launch == LaunchFigures(device="cpu", dtype="float32", threads=1, exact=True)
    assert (
        made.model.positions
        == profiler.look_at(LaunchOptions.make(model=str(model))).model.max_positions
    )
    assert made.prompt.batches == made.token.batches == (1, 4)
    assert [length for _, length, _ in made.prompt.samples] == [16, 40, 16, 40]
    assert {length for _, length, _ in made.token.samples} == {16, 40}
    assert made.prompt_stage is not None
    assert made.token_stage is not None
    assert made.head is not None
    assert (made.machine.network, made.machine.gpu_link, made.machine.hop_s) == (2e9, 5e9, 5e-5)
    assert made.restore == 4e9
    assert made.recovery.load_s is not None
    assert made.recovery.restart_s == pytest.approx(7.0 - made.recovery.load_s)
    assert made.load_s(1) == pytest.approx(made.recovery.load_s / 3)
    assert made.runtime is not None
    assert made.runtime.is_exact
    assert made.runtime.step_s == pytest.approx(3.0, rel=0.1)
    assert made.runtime.detect_s == 0.02
    assert made.runtime.restart_s == pytest.approx(3.0 - made.load_s(2))
    for word in (
        "milliseconds of a step",
        "median error",
        "worst error",
        "GB/s",
        "next: python -m dvrt plan",
    ):
        assert word in unwrapped(out)


def test_sizes_are_those_of_the_checkpoint(run: Any, model: Path, tmp_path: Path) -> None:
    run("profile", model, "--device", "cpu", "--dtype", "bfloat16", *QUICK, "--out", "b.json")
    made = read_profile(tmp_path / "b.json").model
    shape = open_shape(str(model))
    stored = (model / "model.safetensors").stat().st_size
    assert (made.layers, made.hidden, made.kv_heads, made.head_dim) == (3, 64, 2, 16)
    assert made.dtype_bytes == 2
    assert made.kv_bytes_per_token == 2 * 2 * 16 * 2
    assert made.layer_weight_bytes == 2 * shape.layer_parameters
    assert made.weight_bytes == pytest.approx(stored / 2, rel=0.05)


def test_a_profile_of_some_layers_is_one_of_all(run: Any, model: Path, tmp_path: Path) -> None:
    """The last layer alone has no other to subtract, and takes hidden states instead of tokens."""
    out = run("profile", model, "--device", "cpu", "--layers", "1", *QUICK)
    made = read_profile(tmp_path / "tiny-cpu.json")
    assert made.model.layers == 3
    assert made.prompt_stage is None
    assert made.token_stage is None
    assert made.runtime is None
    assert "1 of 3 layers" in made.note
    assert "1 layers" in unwrapped(out)
    run("profile", model, "--device", "cpu", "--layers", "2", "--no-exact", *QUICK)
    assert read_profile(tmp_path / "tiny-cpu.json").prompt_stage is not None


def test_stages_kept_at_once_or_one_by_one(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one stage only, each batch size is measured for itself."""
    run("profile", model, "--device", "cpu", *QUICK)
    blueprint = profiler.look_at(LaunchOptions.make(model=str(model), device="cpu"))
    grid = profiler.make_grid(blueprint, (1, 4), (16, 40), 3)
    needed = profiler._stage_bytes(blueprint, 0, grid)
    free = int(needed / profiler.MOST_OF_MEMORY * 1.5)
    monkeypatch.setattr(profiler, "_memory", lambda device: (10**10, free))
    measured = profiler.measure_profile(blueprint, grid)
    assert measured.profile.token.batches == (1, 4)
    assert len(measured.steps.load_s) == 2
    monkeypatch.setattr(profiler, "_memory", lambda device: (10**10, free // 2))
    with pytest.raises(ConfigError, match="missing"):
        profiler.measure_profile(blueprint, grid)


def test_a_measured_profile_makes_a_plan(run: Any, model: Path) -> None:
    run("profile", model, "--device", "cpu", *QUICK)
    arguments = ("--machines", "2", "--workload", "prompt=32,output=16", "--model", model)
    out = run("plan", "--profile", "tiny-cpu.json", *arguments)
    line = out.rstrip().splitlines()[-1]
    assert line.startswith(f"python -m dvrt launch {model} --stages ")
    assert "--chunk-tokens 64" in line
    assert "derived" not in out


def test_the_public_simulators_form(run: Any, model: Path, tmp_path: Path) -> None:
    """Times in milliseconds of the whole model; other models in the file stay."""
    path = tmp_path / "model_info.json"
    other = {"batch_sizes": [4], "measurements_per_bs": {"4": [100.0, 5.0]}}
    path.write_text(json.dumps({"other": other}))
    public = ("--format", "model_info", "--out", path)
    run("profile", model, "--device", "cpu", *QUICK, *public)
    info = read_model_info(path, "tiny")
    assert info.batch_sizes == (1, 4)
    assert min(*info.prompt_ms, *info.token_ms) > 0
    assert read_model_info(path, "other").prompt_ms == (100.0,)
    like = ("--from-model-info", path, "--like", "opt-13b-a100-80", "--prompt-lengths", "40")
    run("profile", "tiny", *like, "--out", "back.json")
    back = read_profile(tmp_path / "back.json")
    assert back.origin == "imported"
    assert 40_000 * back.prompt.seconds(4, 40) == pytest.approx(info.prompt_ms[1], rel=1e-3)


def test_a_file_that_cannot_take_the_result_is_seen_first(
    run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "measure_links", None)
    path = tmp_path / "list.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match="holds no models"):
        run("profile", model, "--format", "model_info", "--out", path)
    with pytest.raises(ConfigError, match="must be a file"):
        run("profile", model, "--out", tmp_path)


def test_a_roofline_is_marked_as_derived(run: Any, tmp_path: Path) -> None:
    (tmp_path / "gpu.toml").write_text(GPU)
    out = run("profile", "llama-3-8b", "--roofline", "gpu.toml")
    made = read_profile(tmp_path / "llama-3-8b-l4.json")
    assert made.origin == "derived"
    assert made.machine.name == "L4"
    assert "derived: Derived, not measured" in out


def test_the_next_line_quotes_paths(run: Any, tmp_path: Path) -> None:
    (tmp_path / "gpu.toml").write_text(GPU)
    out = run("profile", "llama-3-8b", "--roofline", "gpu.toml", "--out", "my llama.json")
    assert "plan --profile 'my llama.json' --machines 2 --model llama-3-8b" in out


def test_a_size_in_a_gpus_file_is_a_whole_number(run: Any, tmp_path: Path) -> None:
    text = re.sub(r"(?m)^memory_bytes = .*$", "memory_bytes = 24e9", GPU)
    (tmp_path / "gpu.toml").write_text(text)
    with pytest.raises(ConfigError, match="memory_bytes is 24000000000.0; .* a whole number"):
        run("profile", "llama-3-8b", "--roofline", "gpu.toml")


def test_json_is_the_profile(run: Any, tmp_path: Path) -> None:
    (tmp_path / "gpu.toml").write_text(GPU)
    document = json.loads(run("profile", "opt-13b", "--roofline", "gpu.toml", "--json"))
    assert document["model"]["layers"] == 40


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "null"), "null_step_ms"),
        (("--device", "tpu"), "device"),
        (("--device", "cuda:63"), "cuda:63; PyTorch sees"),
        (("--batch-sizes", "0,4"), "batch size"),
        (("--batch-sizes", "four"), "batch_sizes"),
        (("--prompt-lengths", "16,4000"), "4000"),
        (("--prompt-lengths", "-1"), "prompt length"),
        (("--layers", "9"), "layers is 9; the model has 3"),
        (("--rounds", "1"), "rounds"),
        (("--dtype", "int8"), "dtype"),
        (("--threads", "2"), "thread"),
        (("--out", "no/such/folder.json"), "folder"),
        (("--format", "yaml"), "format"),
        (("--roofline", "absent.toml"), "absent"),
        (("--roofline", "a.toml", "--from-model-info", "b.json", "--like", "c"), "one origin"),
        (("--from-model-info", "b.json"), "go together"),
        (("--from-model-info", "absent.json", "--like", "opt-13b-a100-80"), "absent"),
    ],
)
def test_bad_input(run: Any, model: Path, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(
            "profile",
            model,
            *(("--device", "cpu") if "--device" not in arguments else ()),
            *arguments,
        )


def test_a_model_that_is_none(run: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        run("profile", tmp_path / "nothing")
    with pytest.raises(ModelError, match="no weights"):
        disk_rate(tmp_path)


def test_the_disk_is_read(model: Path) -> None:
    assert disk_rate(model) > 0


def test_a_layer_is_what_the_others_add() -> None:
    assert layer_share(10.0, 2.5, 4) == pytest.approx(2.5)
    assert layer_share(10.0, 4.0, 4) == pytest.approx(2.0)
    assert layer_share(10.0, 1.0, 4) == pytest.approx(2.5)  # noise: not more than an even share
    assert layer_share(10.0, 12.0, 4) == pytest.approx(0.25)  # noise: never for nothing
    assert layer_share(10.0, 10.0, 1) == 10.0


def test_errors_have_no_sign() -> None:
    samples = [(1, 10, 1.0), (2, 10, 8.0)]
    errors = relative_errors(lambda batch, length: 2.0 * batch, samples)
    assert errors == [pytest.approx(1.0), pytest.approx(0.5)]


def test_what_a_stage_adds_is_in_its_times() -> None:
    """Two stages of two layers add what a stage adds twice; one of four only once."""
    base = open_profile("opt-13b-a100-80")
    besides = fit_steps([(1, 100, 0.01), (64, 100, 0.01)], ["1"])
    with_stage = replace(base, prompt_stage=besides, token_stage=besides)
    for layers in (2, 4):
        for name in ("stage_prompt_s", "stage_token_s"):
            slower = getattr(with_stage, name)(layers, 8, 100)
            assert slower == pytest.approx(getattr(base, name)(layers, 8, 100) + 0.01)


def test_what_laps_tell_of_the_runtime() -> None:
    """Three microbatches on stages of 2 s: 3 s a step."""
    replaced = [Replaced(detect_s=0.1, ready_s=4.0)]
    samples = RuntimeSamples(
        probe=RuntimeProbe(stages=2, batch=4),
        laps_s=[8.0, 10.0],
        replaced=replaced,
        spans=[
            *(spans(4, 1.0, 2.0) + spans(1, 0.8, 1.6)),
            *spans(0, 6.0, 6.0, chunks=2),
            *spans(2, 4.0, 5.0, chunks=1),
        ],
        ship_factor=1.3,
    )
    timings = [NullTiming(decode_s=0.5, chunk_s=2.0), NullTiming(decode_s=1.0, chunk_s=2.0)]
    found = runtime_figures(samples, timings, load_s=1.5, is_exact=False)
    assert found.step_s == pytest.approx(1.0)
    others = [each for each in samples.spans if each.rows != 2]
    hopping = replace(samples, spans=others + tight_ring())
    assert runtime_figures(hopping, timings, load_s=1.5, is_exact=False).hop_s == pytest.approx(1.0)
    assert (found.detect_s, found.restart_s) == (0.1, 2.5)
    assert (found.token_factor, found.prompt_factor) == (2.0, 1.5)
    assert found.ship_factor == pytest.approx(1.3 * 1.6 / 2.0)
    assert [found.token_factor_of(n) for n in (1, 2, 5)] == [pytest.approx(1.6), 2.0, 2.0]
    busy = replace(samples, spans=[replace(each, seconds=9.0) for each in samples.spans])
    slow = runtime_figures(busy, timings, load_s=5.0, is_exact=False)
    assert (slow.step_s, slow.restart_s) == (0.0, 0.0)


def tight_ring() -> list[StageSpan]:
    """Two microbatches on two stages of 5 s; 1 s to the other stage, 2 s by the controller. The
    second microbatch waits for each stage.
    """
    return [
        StageSpan(
            stage=stage,
            rows=2,
            chunks=0,
            seconds=5.0,
            began_s=13.0 * lap + 5.6 * microbatch + 6.0 * stage,
            step=100 + 2 * lap + microbatch,
            microbatch=microbatch,
        )
        for lap in range(5)
        for microbatch in range(2)
        for stage in range(2)
    ]


def test_hops_are_seen_where_the_next_stage_is_free() -> None:
    ring = tight_ring()
    assert hop_s(ring, n_stages=2, rows=2) == pytest.approx((1.0 + 2.0) / 3)
    assert hop_s(ring, n_stages=2, rows=1) == 0.0

    def later(since_s: float) -> list[StageSpan]:
        return [
            replace(each, began_s=each.began_s + (each.began_s >= since_s) * 1e6) for each in ring
        ]

    assert hop_s(later(26.0), n_stages=2, rows=2) == pytest.approx(1.0)  # a loss is no hop


def test_spans_come_from_the_trace_of_a_launch(tmp_path: Path, model: Path) -> None:
    trace = tmp_path / "trace.json"

    async def serve() -> None:
        launched = dvrt.launch(
            model, stages=2, batch_size=2, max_context=32, device="null", trace=str(trace)
        )
        async with launched as engine:
            await engine.complete([1, 2, 3], max_tokens=4, temperature=0.0, ignore_eos=True)

    asyncio.run(serve())
    found = Counter((each.stage, each.rows, each.chunks) for each in read_spans(trace))
    assert found == {(stage, *step): n for stage in (0, 1) for step, n in ALONE.items()}


@pytest.mark.slow
def test_the_demo_model_within_a_minute(tmp_path: Path) -> None:
    """The real command: a launch, bandwidths between two processes, steps."""
    out = tmp_path / "demo.json"
    command = [sys.executable, "-m", "dvrt", "profile", "examples/storyteller", "--out", str(out)]
    done = subprocess.run(
        [*command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    made = read_profile(out)
    assert made.recovery.restart_s > 0
    assert made.machine.network > 1e8
    assert 0 < made.machine.hop_s < 0.05
    assert made.runtime is not None
    assert 0 < made.runtime.detect_s < made.runtime.detect_s + made.runtime.restart_s < 30
