"""``dvrt chaos``: schedules in virtual time, a script that is run again, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dvrt.chaos.campaign import Failure, Tally
from dvrt.chaos.real_run import RealReport
from dvrt.chaos.report import as_json
from dvrt.chaos.schedule import Schedule, draw_schedule
from dvrt.cli.app import run_command
from dvrt.errors import ConfigError
from dvrt.models.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("chaos") / "tiny", "gpt2", n_layers=3)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run_command(["chaos", *arguments])
    return code, capsys.readouterr().out


def test_a_script_is_run_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.json"
    script.write_text(draw_schedule(3, n_layers=3).to_json())
    code, text = run(capsys, str(model), "--replay", str(script), "--json")
    verdict: dict[str, Any] = json.loads(text)
    assert code == 0
    assert verdict["faults"] == [] and verdict["n_asked"] > 1


def test_a_few_schedules_and_a_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--virtual", "--seeds", "3", "--jobs", "1", "--kinds", "kill", "--stages", "2")
    code, text = run(capsys, str(model), *given)
    assert code == 0
    assert "schedules that went wrong" in text and "kill" in text
    code, text = run(capsys, str(model), *given, "--json")
    told: dict[str, Any] = json.loads(text)
    assert code == 0
    assert told["n_seeds"] == 3 and told["failures"] == []
    assert set(told["injected"]) == {"kill"} and set(told["mix"]) <= {"request given up", "spares"}


def test_reports_are_plain_values() -> None:
    schedule = draw_schedule(3)
    failure = Failure(schedule=schedule, faults=("it was wrong",))
    tally = Tally(failures=[failure], injected=Counter(kill=2))
    told = json.loads(json.dumps(as_json(tally)))
    assert told["injected"] == {"kill": 2}
    assert told["failures"][0]["faults"] == ["it was wrong"]
    assert Schedule.from_json(json.dumps(told["failures"][0]["schedule"])) == schedule
    told = json.loads(json.dumps(as_json(RealReport(1, injected=Counter(kill=2)))))
    assert told["injected"] == {"kill": 2} and told["seed"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--virtual", "--kinds", "kill,flood"], "'flood' is unknown"),
        (["--kinds", "corrupt"], "'corrupt' is unknown; known: kill, stop"),
        (["--replay", "nowhere.json"], "nowhere.json: No such file"),
        (["--virtual", "--stages", "0"], "stages"),
    ],
)
def test_what_cannot_be_is_refused(model: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_command(["chaos", str(model), *arguments])


def test_without_a_model_only_in_virtual_time() -> None:
    with pytest.raises(ConfigError, match="model is missing"):
        run_command(["chaos"])
