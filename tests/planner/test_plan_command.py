"""``plan`` from the command line: tables, JSON, the public planner's lines, and errors."""

from __future__ import annotations

import json

import pytest
import typer

from dvrt.cli.plan import plan
from dvrt.errors import ConfigError
from tests.planner.cases import CASES

BASE = ("--profile", "opt-66b-a100-80", "--gpus", "2", "--machines", "4")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.command()(plan)

    def call(*arguments: str) -> str:
        app(arguments, standalone_mode=False)
        return capsys.readouterr().out

    return call


def public(letter: str) -> str:
    case = CASES[letter]
    return ",".join(f"{name}={getattr(case, name)}" for name in case.__slots__)


def test_the_table_ends_with_the_launch_line(run) -> None:
    out = run(*BASE, "--model", "some-dir")
    assert out.rstrip().splitlines()[-1].startswith("python -m dvrt launch some-dir --")
    for word in ("Best splits", "Equations 1-6", "Eq. 4", "$/M tokens", "derived"):
        assert word in out


def test_json_is_one_object(run) -> None:
    document = json.loads(run(*BASE, "--json", "--families", "colocated", "--batch-sizes", "4,8"))
    assert document["best"]["split"]["family"] == "colocated"
    assert document["best"]["split"]["batch"] in (4, 8)
    assert document["best"]["dollars_per_million_tokens"] > 0


def test_options_reach_the_planner(run) -> None:
    options = ("--cost", "20", "--memory", "90GB", "--replicas", "1", "--no-swap", "--json")
    document = json.loads(run(*BASE, *options, "--slo", "ttft=100,tpot=1", "--mtbf-hours", "10"))
    assert document["best"]["split"]["replicas"] == 1
    assert document["best"]["availability"] < 1
    assert document["keeps_slo"]
    memory = {need["available_bytes"] for need in document["best"]["memory"]}
    assert int(90e9 * 0.9) in memory


def test_the_public_planners_lines(run) -> None:
    out = run("--public", public("K"))
    assert out == "Num machines for prompt: 2\nNum machines for token: 4\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--public", public("B")), "Cannot find a valid partitioning"),
        (("--public", public("K"), "--json"), "json does nothing with public"),
        (("--public", public("K"), "--plot", "p.svg"), "plot does nothing with public"),
        ((*BASE, "--plot", "no/p.svg"), "plot is no/p.svg"),
        ((*BASE, "--workload", "prompt=3000,output=9"), "has 2048 positions"),
        (("--public", "x=1"), "public planner takes"),
        ((), "needs --profile"),
        (("--profile", "opt-66b-a100-80"), "needs --profile and --machines"),
        (("--profile", "opt-66b-a100-80", "--machines", "0"), "0 machines"),
        (("--profile", "opt-99b", "--machines", "4"), "no profile"),
        ((*BASE, "--slo", "speed=1"), "speed"),
        ((*BASE, "--slo", "ttft=-1"), "ttft"),
        ((*BASE, "--workload", "output=x"), "not a number"),
        ((*BASE, "--families", "magic"), "magic"),
        ((*BASE, "--memory", "lots"), "memory"),
        ((*BASE, "--memory", "20GB"), "missing"),
        ((*BASE, "--objective", "beauty"), "objective"),
        ((*BASE, "--cost", "-1"), "cost"),
        ((*BASE, "--percentile", "80"), "percentile"),
        ((*BASE, "--batch-sizes", "0"), "batch sizes"),
    ],
)
def test_bad_input(run, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(*arguments)
