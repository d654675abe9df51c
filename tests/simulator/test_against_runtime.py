"""The simulator beside the runtime itself, which serves the same trace in virtual time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dvrt.bench.fidelity import figures, play, serve, write_trace
from dvrt.bench.fidelity_sides import SWAP_BANDWIDTH, TIMING, Case, launch_options, setups
from dvrt.bench.null_times import write_timing
from dvrt.models.tiny import write_tiny
from dvrt.simulator.deploy import deploy_times
from dvrt.simulator.deployment import LinkFigures
from dvrt.virtual import run_virtual

STAGES = 3
SECONDS = 5.0
IN_PROCESS: Mapping[str, Any] = {
    "device": "null",
    "in_process": True,
    "heartbeat_s": 1.0,
    "lease_s": 30.0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("null")
    return str(write_tiny(folder, "gpt2", n_layers=6, hidden_size=16, max_positions=512))


def make_case(name: str, model: str, folder: Path, rate_per_s: float) -> Case:
    """Nothing costs anything but what the null device is told to take."""
    setup = setups(STAGES)[name]
    options = launch_options(setup) | IN_PROCESS
    options["null_timing"] = str(write_timing(folder / "times.toml", TIMING))
    if setup.device_slots is not None:
        options["swap_bandwidth"] = SWAP_BANDWIDTH
    links = LinkFigures(host_to_device=SWAP_BANDWIDTH, device_to_host=SWAP_BANDWIDTH)
    return Case(
        name=name,
        model=model,
        options=options,
        deployment=deploy_times(setup, TIMING, links=links),
        rate_per_s=rate_per_s,
        is_cold=False,
    )


@pytest.mark.parametrize(
    ("name", "rate_per_s", "within"),
    [
        ("colocated", 8.0, 0.002),
        ("disaggregated", 8.0, 0.03),
        ("swapping", 3.0, 0.002),
        ("swapping", 8.0, 0.002),
    ],
)
def test_throughput_and_medians(
    model: str, tmp_path: Path, name: str, rate_per_s: float, within: float
) -> None:
    """They are the same, but for logs that come while a stage for tokens computes."""
    case = make_case(name, model, tmp_path, rate_per_s)
    trace = write_trace(tmp_path / "trace.json", rate_per_s, SECONDS)
    served = run_virtual(serve(case, trace), seed=None)
    simulated = figures(play(case, trace))
    assert served.counts["requests"] == len(json.loads(trace.read_text()))
    for key, measured in figures(served).items():
        assert simulated[key] == pytest.approx(measured, rel=within), key
