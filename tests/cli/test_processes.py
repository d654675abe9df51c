"""The command line for real: worker processes, HTTP, signals, a worker that is killed or joins.

The device is null, which computes hashes and needs no time; the rest is as in production. What
these commands leave running fails the test that started them (tests/conftest.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.cli.command import LIMIT_S, ROOT, STORYTELLER, post, running


def null_launch(*arguments: str) -> list[str]:
    device = ["--device", "null", "--null-step-ms", "0"]
    return ["launch", STORYTELLER, "--stages", "2", *device, "--port", "0", *arguments]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_one_answer_as_json() -> None:
    asked = ["--prompt-ids", "1,2,3", "--max-tokens", "5", "--ignore-eos", "--temperature", "0"]
    command = [sys.executable, "-m", "dvrt", *null_launch(*asked, "--json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert sorted(answer) == ["finish_reason", "text", "timings", "token_ids"]
    assert len(answer["token_ids"]) == 5
    assert answer["finish_reason"] == "length"
    assert 0 < answer["timings"]["first_token_s"] <= answer["timings"]["total_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--prompt", "x"], "nowhere: no such directory"),
        ([STORYTELLER, "--stages", "7", "--prompt", "x"], "stages is 7; the model has only 6"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], message: str) -> None:
    with running("launch", *arguments) as process:
        assert process.end() in (1, 2)
        assert process.said.count("\n") == 1
        assert message in process.said


def test_serving_with_a_worker_that_joins_by_hand() -> None:
    control = free_port()
    by_hand = ["--external-workers", "1", "--control-port", str(control)]
    join = ["worker", "--join", f"127.0.0.1:{control}"]
    with (
        running(*null_launch(*by_hand), DVRT_SECRET="right") as launch,
        running(*join, "--secret", "wrong") as stranger,
    ):
        assert stranger.end() == 1
        assert stranger.last_line.startswith("dvrt: worker ")
        assert "does not know this cluster's secret" in stranger.said
        with running(*join, DVRT_SECRET="right") as worker:
            url = launch.until(r"serving storyteller at (http://\S+)\n")[1]
            body = {"model": "storyteller", "prompt": [1, 2], "max_tokens": 3}
            assert post(f"{url}/v1/completions", body)["usage"]["prompt_tokens"] == 2
            assert f"│ {worker.process.pid} " in launch.said
            launch.process.send_signal(signal.SIGTERM)
            assert (launch.end(), worker.end()) == (0, 0)


def test_a_worker_too_many_that_is_killed_ends_the_server_with_one_line() -> None:
    with running(*null_launch(), "--max-deaths", "0") as launch:
        launch.until("serving storyteller")
        victim = re.search(r"worker-1 \(pid (\d+)\): ready", launch.said)
        assert victim is not None
        os.kill(int(victim[1]), signal.SIGKILL)
        assert launch.end() == 1
        assert launch.last_line.startswith("dvrt: worker worker-1 failed")


@pytest.mark.parametrize(
    ("moment", "times", "codes"),
    [("loading", 1, (130,)), ("loading", 2, (130,)), ("serving storyteller", 2, (0, 130))],
)
def test_ctrl_c_leaves_nothing(moment: str, times: int, codes: tuple[int, ...]) -> None:
    with running(*null_launch()) as launch:
        launch.until(moment)
        for _ in range(times):
            launch.process.send_signal(signal.SIGINT)
            time.sleep(0.15)
        assert launch.end() in codes
