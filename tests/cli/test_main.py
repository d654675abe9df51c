"""The command line from outside: help, exit codes, one line for each failure."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dvrt.cli import main
from dvrt.config import LaunchOptions
from dvrt.options import options_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs the command line in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("dvrt.cli.exit_on_signals", lambda: None)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DVRT_SECRET", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvrt", "version", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["dvrt"] == "0.1.0"


def test_help_lists_the_commands(run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert [
        name for name in ("launch", "worker", "demo", "bench", "version") if name not in out
    ] == []


def test_every_launch_option_is_a_flag_with_its_help(run) -> None:
    code, out, _ = run("launch", "--help")
    words = " ".join(out.split())
    assert code == 0
    for name, each in options_of(LaunchOptions).items():
        assert name == "model" or f"{each.flag} " in words
        assert each.help in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("launch", "model is missing; directory of a Hugging Face causal-LM checkpoint"),
        ("launch m --stages 0", "stages is 0; at least 1"),
        ("launch m --layers 1,x", "layers is '1,x'; expected numbers such as 4,4,2"),
        ("launch m --device tpu", "device is 'tpu'; expected auto, cpu, cuda, cuda:N or null"),
        (
            "launch m --stages 3 --microbatches 2",
            "microbatches is 2; 3 stages need at least 3 to be busy",
        ),
        (
            "launch m --prompt x --temperature nan",
            "temperature is nan; expected a finite number",
        ),
        ("launch m --prompt x --temperature -1", "temperature is -1.0; at least 0"),
        (
            "launch m --temperature 1",
            "temperature is given without a prompt; add --prompt or --prompt-ids",
        ),
        ("launch m --json", "json is given without a prompt; add --prompt"),
        (
            "launch m --prompt x --prompt-ids 1",
            "prompt and prompt_ids are both given; give one",
        ),
        ("launch m --config none.toml", "none.toml: No such file or directory"),
        ("worker --join x --secret s", "join is 'x'; expected HOST:PORT"),
        ("worker --join x:1", "secret is missing; the cluster's secret"),
    ],
)
def test_wrong_options_are_one_line_and_two(run, arguments: str, message: str) -> None:
    assert run(*arguments.split()) == (2, "", f"dvrt: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lunch"], "No such command 'lunch'. Did you mean 'launch'"),
        (["launch", "m", "--stage", "2"], "No such option: --stage (Possible options: --stages"),
        (["launch", "m", "--port", "http"], "Invalid value for '--port'"),
        (["launch", "m", "n"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_two(run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_unknown_keys_of_a_file_name_the_nearest(run, tmp_path: Path) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('model = "m"\nbatch_sice = 3\n')
    code, _, err = run("launch", "--config", str(file))
    assert (code, err) == (2, "dvrt: unknown option 'batch_sice'; did you mean 'batch_size'?\n")


def test_a_port_in_use_is_refused_before_anything_loads(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        code, out, err = run("launch", "nowhere", "--port", str(port))
    assert (code, out) == (2, "")
    assert err == f"dvrt: cannot listen on 127.0.0.1 port {port}: Address already in use\n"


def test_bugs_are_one_line_too_and_debug_shows_where(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise LookupError("no such\nthing")

    monkeypatch.setattr("dvrt.cli.app.run_command", broken)
    assert run("version") == (1, "", "dvrt: internal error: LookupError: no such thing\n")
    code, _, err = run("version", "--debug")
    assert code == 1
    assert err.startswith("Traceback")
    assert err.endswith("dvrt: internal error: LookupError: no such thing\n")
