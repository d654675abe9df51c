"""The deployments of ``bench fidelity``, as the runtime is launched and as they are simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dvrt.bench.null_times import write_timing
from dvrt.bench.profile_runtime import RuntimeProbe, measure_runtime, runtime_figures
from dvrt.bench.profiler import look_at, make_grid, measure_profile
from dvrt.config import LaunchOptions
from dvrt.models.null_timing import NullTiming
from dvrt.planner.parts import RuntimeFigures
from dvrt.planner.profile import Profile
from dvrt.simulator.deploy import Setup, deploy_profile, deploy_times
from dvrt.simulator.deployment import Deployment, FailureFigures, LinkFigures

CONTEXT = 256
BATCH = 4
CHUNK = 64
TIMING = NullTiming(
    decode_s=6e-3,
    decode_row_s=2e-4,
    decode_entry_s=1e-6,
    chunk_s=2e-3,
    prompt_token_s=1e-4,
    prompt_entry_s=1e-7,
    entry_bytes=100_000,
    start_s=0.5,
    load_s=0.5,
)
SWAP_BANDWIDTH = 8_000_000_000
NULL_RATES = {"colocated": 5.0, "disaggregated": 4.0, "swapping": 4.0}
REAL_RATES = {"colocated": 1.5, "disaggregated": 1.5, "swapping": 1.5}
ROUNDS = 3
REAL_MODEL: Mapping[str, Any] = {
    "n_layers": 8,
    "hidden_size": 512,
    "n_heads": 8,
    "max_positions": 512,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One deployment: how it is launched, what the simulator is told, and the rate of requests.

    ``fails`` has it serve the trace once more, with a worker that is killed. A cluster that
    ``is_cold`` serves a few requests before.
    """

    name: str
    model: str
    options: Mapping[str, Any]
    deployment: Deployment
    rate_per_s: float
    fails: bool = False
    is_cold: bool = True

    @property
    def warm_up(self) -> int:
        """Enough requests for every row to have been used."""
        if not self.is_cold:
            return 0
        line = self.deployment.tokens
        return line.n_microbatches * line.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A device, its deployments, which are served ``rounds`` times, and what the runtime costs
    there."""

    name: str
    about: str
    rounds: int
    runtime: dict[str, Any]
    cases: tuple[Case, ...]


def setups(stages: int) -> dict[str, Setup]:
    """The deployments by name, on so many machines."""
    replicas = int(stages > 1)
    common: dict[str, Any] = {"batch": BATCH, "chunk_tokens": CHUNK, "replicas": replicas}
    return {
        "colocated": Setup(stages=stages, **common),
        "disaggregated": Setup(stages=stages - 1, prompt_stages=1, **common),
        "swapping": Setup(stages=stages, device_slots=2, **common),
    }


def launch_options(setup: Setup) -> dict[str, Any]:
    """The options of ``launch`` for what the simulator calls a set-up."""
    options: dict[str, Any] = {
        "batch_size": setup.batch,
        "chunk_tokens": setup.chunk_tokens,
        "replicas": setup.replicas,
        "max_context": CONTEXT,
        "max_deaths": 10_000,
    }
    if setup.prompt_stages:
        options |= {"prompt_stages": setup.prompt_stages, "token_stages": setup.stages}
    else:
        options["stages"] = setup.stages
    if setup.device_slots is not None:
        options |= {"swap": True, "device_slots": setup.device_slots}
    return options


def null_side(folder: Path, *, quick: bool) -> Side:
    """Three stages that only take time; what the runtime costs was measured with such stages."""
    from dvrt.models.tiny import write_tiny

    stages = 3
    model = write_tiny(
        folder / "null", "gpt2", n_layers=6, hidden_size=16, max_positions=2 * CONTEXT
    )
    device = {"device": "null", "null_timing": str(write_timing(folder / "times.toml", TIMING))}
    probe = _probe(stages, quick=quick)
    runtime = runtime_figures(
        measure_runtime(str(model), probe, **device),
        [TIMING] * stages,
        load_s=TIMING.start_s + TIMING.load_s,
        is_exact=False,
    )
    cases = []
    for name, setup in setups(stages).items():
        options = launch_options(setup) | device
        if setup.device_slots is not None:
            options["swap_bandwidth"] = SWAP_BANDWIDTH
        cases.append(
            Case(
                name=name,
                model=str(model),
                options=options,
                deployment=_null_deployment(setup, runtime),
                rate_per_s=NULL_RATES[name],
                fails=name == "colocated",
            )
        )
    about = f"{stages} stages of null devices, steps of {1000 * TIMING.decode_s:g} ms and more"
    return Side(
        name="null",
        about=about,
        rounds=1 if quick else ROUNDS,
        runtime=asdict(runtime),
        cases=tuple(cases),
    )


def _null_deployment(setup: Setup, runtime: RuntimeFigures) -> Deployment:
    return deploy_times(
        setup,
        TIMING,
        runtime=runtime,
        links=LinkFigures(
            host_to_device=SWAP_BANDWIDTH,
            device_to_host=SWAP_BANDWIDTH,
            latency_s=runtime.hop_s,
        ),
        failures=FailureFigures(
            detect_s=runtime.detect_s, restart_s=runtime.restart_s + TIMING.start_s
        ),
    )


def real_side(folder: Path, *, quick: bool) -> Side:
    """A model on the CPU, on two stages of one thread, by the profile that ``profile`` makes."""
    from dvrt.models.tiny import write_tiny

    stages = 2
    model = write_tiny(folder / "real", "gpt2", **REAL_MODEL)
    profile = _profile(model, stages, quick=quick)
    assert profile.runtime is not None
    cases = [
        Case(
            name=name,
            model=str(model),
            options=launch_options(setup) | {"device": "cpu"},
            deployment=deploy_profile(
                setup,
                profile,
                failures=FailureFigures(
                    detect_s=profile.runtime.detect_s, restart_s=profile.runtime.restart_s
                ),
            ),
            rate_per_s=REAL_RATES[name],
            fails=name == "colocated",
        )
        for name, setup in setups(stages).items()
    ]
    return Side(
        name="real",
        about=f"{stages} stages, {profile.note}",
        rounds=1 if quick else ROUNDS,
        runtime=asdict(profile.runtime),
        cases=tuple(cases),
    )


def _profile(model: Path, stages: int, *, quick: bool) -> Profile:
    options = LaunchOptions.make(model=str(model), device="cpu", chunk_tokens=CHUNK)
    blueprint = look_at(options)
    batches = (1, BATCH) if quick else (1, 2, BATCH)
    grid = make_grid(blueprint, batches, (64, 128, CONTEXT), 3 if quick else 9)
    return measure_profile(blueprint, grid, probe=_probe(stages, quick=quick)).profile


def _probe(stages: int, *, quick: bool) -> RuntimeProbe:
    if quick:
        return RuntimeProbe(stages=stages, batch=BATCH, tokens=40, rounds=1, kills=1, ships=CHUNK)
    return RuntimeProbe(stages=stages, batch=BATCH, rounds=7, kills=3, ships=CHUNK)
