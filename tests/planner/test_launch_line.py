"""``launch`` takes the line that ``plan`` ends with: its options, and what they allocate."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dvrt.cluster.plan import plan_cluster
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.models.budget import KvShape, ensure_fits, ensure_swap_helps
from dvrt.models.split import split_evenly
from dvrt.models.tiny import write_tiny
from dvrt.options import options_of
from dvrt.planner.launch_line import launch_line
from dvrt.planner.parts import LaunchFigures
from dvrt.planner.plan import Plan, PlanInput, make_plan
from dvrt.planner.profile import Profile, open_profile, shipped_profiles
from dvrt.planner.roofline import Gpu, derive_profile
from dvrt.planner.shapes import open_shape
from dvrt.planner.split import FAMILIES
from dvrt.planner.workload import fixed_workload, open_workload
from tests.planner.test_plan import ONE_PIPELINE, opt_66b, public_plan

WORKLOADS = ("prompt=300,output=100", "prompt=600,prompt_cv=0.3,output=210,cv=1,longest=500")


def launch_options(line: str) -> LaunchOptions:
    """What ``launch`` takes from the line; raises for an option that it does not know."""
    words = shlex.split(line, comments=True)
    assert words[:4] == ["python", "-m", "dvrt", "launch"]
    values: dict[str, object] = {"model": words[4]}
    rest = words[5:]
    known = options_of(LaunchOptions)
    while rest:
        key = rest.pop(0).removeprefix("--").replace("-", "_")
        name = key.removeprefix("no_")
        is_flag = known[name].kind is bool
        text = "" if is_flag else rest.pop(0)
        values[name] = key == name if is_flag else int(text) if text.isdecimal() else text
    return LaunchOptions.make(**values)


def check_allocation(options: LaunchOptions, profile: Profile) -> None:
    """By the launch's own rules: what fits ``kv_memory``, and where swapping is refused."""
    model = profile.model
    assert options.max_context is not None
    assert model.positions is None or options.max_context <= model.positions
    pipelines = [(options.n_stages, options.n_microbatches, options.batch_size)]
    if options.prompt_stages:
        rows = options.prompt_batch_size or options.batch_size
        microbatches = options.prompt_microbatches or options.prompt_stages + 1
        pipelines.append((options.prompt_stages, microbatches, rows))
    slots = options.device_slots if options.swap else 0
    shapes = [
        KvShape(
            entry_bytes=(stop - first) * model.kv_bytes_per_token,
            context=options.max_context,
            chunk_tokens=options.chunk_tokens,
            batch_size=rows,
            n_microbatches=microbatches,
        )
        for stages, microbatches, rows in pipelines
        for first, stop in split_evenly(model.layers, stages)
    ]
    for shape, layers in zip(shapes, _layers(pipelines, model.layers), strict=True):
        need = ensure_fits(shape, options.kv_memory, device_slots=slots)
        weights = layers * model.layer_weight_bytes
        assert weights + need.device_bytes <= profile.machine.memory_bytes * 0.9
    if options.swap:
        ensure_swap_helps(shapes, options.kv_memory, device_slots=slots)


def _layers(pipelines: list[tuple[int, int, int]], layers: int) -> list[int]:
    return [
        stop - first for stages, *_ in pipelines for first, stop in split_evenly(layers, stages)
    ]


def plans(profile: Profile, machines: int, workload: str) -> list[Plan]:
    """Of every family, with swapping and without; those that there are."""
    found = []
    for family in FAMILIES:
        for swap in (False, True):
            given = PlanInput(
                profile=profile,
                workload=open_workload(workload),
                machines=machines,
                families=(family,),
                swap=swap,
                replicas=(0,),
            )
            with suppress(ConfigError):  # nothing of this kind fits
                found.append(make_plan(given))
    return found


@pytest.mark.parametrize("name", shipped_profiles())
def test_launch_takes_the_lines_of_shipped_profiles(name: str) -> None:
    profile = open_profile(name)
    workload = WORKLOADS[0] if "gpt2" in name else WORKLOADS[1]
    for machines in (1, 5, 24):
        for plan in plans(profile, machines, workload):
            options = launch_options(launch_line(plan))
            check_allocation(options, profile)
            assert options.n_stages == plan.best.split.stages
            assert options.swap == plan.best.split.swap


def test_plans_were_made_of_all_kinds() -> None:
    """The big ones need many machines; with one of two GPUs less is idle, and swapping helps."""
    profile = open_profile("opt-66b-a100-80")
    seen = {(p.best.split.family, p.best.split.swap) for p in plans(profile, 24, WORKLOADS[1])}
    assert {family for family, _ in seen} == set(FAMILIES)
    assert any(swap for _, swap in seen)


@pytest.mark.parametrize("memory_mb", [0.7, 1.5, 4.0])
def test_a_launch_is_planned_by_the_lines_of_a_measured_profile(
    tmp_path: Path, memory_mb: float
) -> None:
    model = write_tiny(tmp_path / "a model", n_layers=4)
    profile = measured(model, int(memory_mb * 1e6))
    made = [
        plan
        for machines in (1, 4, 9)
        for workload in ("prompt=20,output=9", "prompt=30,prompt_cv=0.5,output=12,cv=1,longest=20")
        for plan in plans(profile, machines, workload)
    ]
    for plan in made:
        options = launch_options(launch_line(plan, str(model)))
        planned = plan_cluster(options, Path(options.model))
        assert planned.n_workers == plan.best.split.group_machines
        assert (planned.device, planned.blueprint.dtype) == ("cpu", "float32")
        assert not options.exact
        assert options.threads == 2
    assert len(made) >= 4


def measured(model: Path, memory_bytes: int) -> Profile:
    """As ``profile`` would make it, with times by a formula."""
    shape = replace(open_shape(str(model)), dtype_bytes=4)
    gpu = Gpu(
        name="tiny",
        peak_flops=1e9,
        memory_bandwidth=1e9,
        memory_bytes=memory_bytes,
        host_memory_bytes=10**9,
        host_to_device=1e9,
        device_to_host=1e9,
        network=1e9,
        gpu_link=1e9,
    )
    launch = LaunchFigures(device="cpu", dtype="float32", threads=2, exact=False)
    return replace(derive_profile(shape, gpu), origin="measured", chunk_tokens=16, launch=launch)


def test_positions_of_a_checkpoint_bound_its_plans(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny")
    limit = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    profile = measured(model, 10**9)
    assert profile.model.positions == limit
    with pytest.raises(ConfigError, match=f"has {limit} positions"):
        PlanInput(profile=profile, workload=fixed_workload(limit, 1), machines=1)


def test_launch_lines() -> None:
    plan = public_plan("B", ONE_PIPELINE)
    assert launch_line(plan, "opt") == (
        "python -m dvrt launch opt --prompt-stages 1 --token-stages 3 --microbatches 3 "
        "--batch-size 8 --prompt-microbatches 1 --prompt-batch-size 8 --max-context 1200 "
        "--chunk-tokens 1200 --kv-memory 28171MiB --replicas 0 --spares 0"
    )
    grouped = public_plan("B")
    assert launch_line(grouped).endswith("# 4 times, one a group")
    chunked = make_plan(opt_66b(families=("chunked",)))
    assert f"--chunk-tokens {chunked.best.split.chunk}" in launch_line(chunked)


def test_paths_are_quoted() -> None:
    line = launch_line(make_plan(opt_66b()), "my models/opt; rm 66b")
    assert shlex.split(line)[4] == "my models/opt; rm 66b"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_line_says_what_the_split_is(family: str) -> None:
    machines = 7
    plan = make_plan(opt_66b(machines, families=(family,), swap=False, replicas=(1, 0)))
    split, options = plan.best.split, launch_options(launch_line(plan))
    assert options.n_stages == split.stages
    assert (options.prompt_stages or 0) == split.prompt_stages
    assert options.prompt_batch_size in (None, split.prompt_batch)
    assert options.replicas == split.replicas
    assert options.spares == (machines - split.machines) // split.groups


def test_idle_machines_are_no_spares_where_a_plan_is_to_be_cheap() -> None:
    plan = make_plan(opt_66b(9, objective="cost"))
    assert plan.best.split.machines < 9
    assert launch_options(launch_line(plan)).spares == 0
