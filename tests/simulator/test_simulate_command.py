"""``simulate`` from the command line: single runs, traces, sweeps with their files, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from dvrt.cli.simulate import simulate
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give --machines"),
        (("--machines", "2"), "requests"),
        (("--machines", "2", "--prompt-machines", "1"), "give --machines"),
        (("--token-machines", "2"), "give --machines"),
        (("--machines", "2", "--requests", "nowhere.json"), "No such file"),
        (("--machines", "2", "--token-time", "-1"), "token_time"),
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
