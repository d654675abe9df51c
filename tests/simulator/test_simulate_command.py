"""``simulate`` from the command line: single runs, traces, sweeps with their files, and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dvrt.cli.simulate import SimulateOptions, simulate, sweep_input
from dvrt.errors import ConfigError
from dvrt.planner.model_info import ModelInfo, write_model_info

TINY = [[10, 3], [10, 2], [10, 4], [10, 2], [10, 3], [10, 2]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(simulate)

    def call(*arguments: str) -> str:
        app(arguments, standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture
def requests(tmp_path: Path) -> str:
    path = tmp_path / "requests.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def test_a_colocated_run_with_its_trace(run, requests: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    times = ("--prompt-time", "10", "--token-time", "1")
    out = run("--requests", requests, "--machines", "2", *times, "--trace", str(trace))
    assert "total 0.113 s" in out
    assert sum(event["ph"] == "X" for event in json.loads(trace.read_text())) == 44


def test_a_disaggregated_run_as_json(run, requests: str) -> None:
    apart = ("--prompt-machines", "1", "--token-machines", "2", "--cache-time", "5")
    times = ("--prompt-time", "20", "--token-time", "1")
    document = json.loads(run("--requests", requests, *apart, *times, "--json"))
    assert document["makespan_s"] == 0.129
    assert len(document["latencies_s"]) == 6


def test_a_sweep_from_files_writes_its_results(run, tmp_path: Path) -> None:
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps([[1000, n] for n in range(2, 34)]))
    info = tmp_path / "model_info.json"
    write_model_info(
        info,
        (ModelInfo(model="OPT-13B", batch_sizes=(8,), prompt_ms=(100.0,), token_ms=(10.0,)),),
    )
    csv_path = tmp_path / "out.csv"
    files = ("--requests", str(requests), "--config-file", str(info))
    out = run("--sweep", "--model", "OPT-13B", *files, "--output-csv", str(csv_path))
    assert "dv over dp" in out
    assert csv_path.read_text().startswith(",Num_machines,Baseline,Baseline_dp,DV,")
    assert len(json.loads(csv_path.with_suffix(".json").read_text())) == 9
    assert not csv_path.with_suffix(".partial").exists()


def test_a_sweep_takes_memory_and_price(tmp_path: Path) -> None:
    """Also where the rest is Appendix B's."""
    given = SimulateOptions(sweep=True, model="OPT-66B", mem_per_machine=400.0, machine_cost=2.5)
    swept = sweep_input(given)
    assert (swept.memory_gb, swept.machine_cost) == (400.0, 2.5)
    usual = sweep_input(SimulateOptions(sweep=True, model="OPT-66B"))
    assert (usual.memory_gb, usual.machine_cost) == (320, 18.52)


def test_a_sweep_needs_a_microbatch_for_each_stage(run, tmp_path: Path) -> None:
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps([[1000, 5]] * 3))
    info = tmp_path / "model_info.json"
    write_model_info(
        info,
        (ModelInfo(model="OPT-13B", batch_sizes=(8,), prompt_ms=(100.0,), token_ms=(10.0,)),),
    )
    files = ("--requests", str(requests), "--config-file", str(info), "--workers", "2")
    with pytest.raises(ConfigError, match="3 lengths, 3 microbatches for pipelines of 4 stages"):
        run("--sweep", "--model", "OPT-13B", *files)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give --machines"),
        (("--machines", "2"), "requests"),
        (("--machines", "2", "--prompt-machines", "1"), "give --machines"),
        (("--token-machines", "2"), "give --machines"),
        (("--machines", "2", "--requests", "nowhere.json"), "No such file"),
        (("--machines", "2", "--token-time", "-1"), "token_time"),
        (
            ("--machines", "2", "--requests", "x", "--plot", "p.svg"),
            "plot is p.svg; it needs sweep",
        ),
        (
            ("--machines", "2", "--requests", "x", "--output-csv", "o.csv"),
            "output_csv .* needs sweep",
        ),
        (("--machines", "2", "--requests", "x", "--mem-per-machine", "9"), "mem_per_machine"),
        (("--machines", "2", "--requests", "x", "--workers", "2"), "workers is 2; it needs sweep"),
        (("--machines", "2", "--requests", "x", "--trace", "no/t.json"), "trace is no/t.json"),
        (("--sweep", "--model", "OPT-66B", "--output-csv", "out.json"), "needs another suffix"),
        (("--sweep", "--model", "OPT-66B", "--output-csv", "no/o.csv"), "output_csv is no/o.csv"),
        (("--sweep", "--model", "OPT-66B", "--plot", "no/o.svg"), "plot is no/o.svg"),
        (("--profile", "opt-13b-a100-80", "--plot", "no/o.svg"), "plot is no/o.svg"),
        (("--sweep",), "--model"),
        (("--sweep", "--model", "GPT-5"), "one of OPT-66B"),
        (("--sweep", "--model", "OPT-66B", "--requests", "x"), "neither"),
    ],
)
def test_bad_input(run, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(*arguments)


def test_no_machines(run, requests: str) -> None:
    with pytest.raises(ConfigError, match="machines is 0"):
        run("--requests", requests, "--machines", "0")


TIMES = "decode_s = 0.01\nprompt_token_s = 0.0001\nentry_bytes = 1000\n"


@pytest.fixture
def timing(tmp_path: Path) -> str:
    path = tmp_path / "times.toml"
    path.write_text(TIMES)
    return str(path)


def test_a_deployment_by_fixed_times(run, timing: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    shape = ("--stages", "2", "--prompt-stages", "1", "--cost", "3.6", "--replicas", "1")
    load = ("--count", "40", "--rate", "5", "--fail", "1@2")
    out = run("--null-timing", timing, *shape, *load, "--trace", str(trace))
    assert "40 requests on 3 machines" in out
    assert "per million tokens" in out
    assert "1 failures" in out
    assert "wait transfer" in out
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(spans) > 100


def test_a_plot(timing: str, tmp_path: Path) -> None:
    """In a process of its own: matplotlib keeps its font files open."""
    plot = tmp_path / "plot.svg"
    command = ("simulate", "--null-timing", timing, "--count", "20", "--plot", str(plot))
    subprocess.run([sys.executable, "-m", "dvrt", *command], check=True, capture_output=True)
    assert plot.read_text().startswith("<?xml")


def test_a_deployment_by_a_profile_as_json(run, tmp_path: Path) -> None:
    trace = tmp_path / "requests.json"
    trace.write_text(json.dumps([[100, 5, i / 10] for i in range(30)]))
    given = ("--profile", "opt-13b-a100-80", "--stages", "2", "--clusters", "3", "--swap")
    found = json.loads(
        run(*given, "--microbatches", "4", "--requests", str(trace), "--workers", "2", "--json")
    )
    assert (found["requests"], found["output_tokens"], found["machines"]) == (30, 150, 6)
    assert found["simulation"]["processes"] == 2
    assert found["cost"]["dollars"] > 0
    assert {stage["stage"] for stage in found["stages"]} == {"tokens 0", "tokens 1"}
    assert found["latencies"]["ttft_s"]["count"] == 30


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--stages", "4"), "stages needs --profile"),
        (("--profile", "gpt-5"), "no profile 'gpt-5'"),
        (("--profile", "opt-66b-a100-80"), "GB missing"),
        (("--profile", "opt-13b-a100-80", "--stages", "41"), "only 40 layers"),
        (("--profile", "opt-13b-a100-80", "--null-timing", "x.toml"), "not both"),
        (("--profile", "opt-13b-a100-80", "--compat"), "no profile"),
        (("--profile", "opt-13b-a100-80", "--prompt-time", "3"), "prompt_time belongs"),
        (("--profile", "opt-13b-a100-80", "--requests", "no.json"), "no such file"),
        (("--profile", "opt-13b-a100-80", "--fail", "now"), "machine@seconds"),
        (("--profile", "opt-13b-a100-80", "--fail", "1@5"), "cannot fail"),
        (("--profile", "opt-13b-a100-80", "--fail", "0@-5"), "from 0 on"),
        (("--profile", "opt-13b-a100-80", "--rate", "0"), "above 0"),
        (("--profile", "opt-13b-a100-80", "--router", "x"), "choose from"),
        (("--profile", "opt-13b-a100-80", "--mtbf-hours", "0"), "above 0"),
        (("--profile", "opt-13b-a100-80", "--workload", "prompt=5"), "needs output"),
        (("--profile", "opt-13b-a100-80", "--replicas", "1"), "1 replicas"),
        (("--null-timing", "nowhere.toml"), "No such file"),
    ],
)
def test_bad_deployments(run, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(*arguments)
