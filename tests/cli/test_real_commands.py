"""The command line with a real model on the CPU: the demo, and signals at awkward moments.

What these commands leave running fails the test that started them (tests/conftest.py).
"""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.cli.command import STORYTELLER, opened, running


def real_launch(*arguments: str) -> list[str]:
    return ["launch", STORYTELLER, "--stages", "2", "--device", "cpu", "--port", "0", *arguments]


def test_the_demo_tells_its_stories_again_after_a_loss() -> None:
    with running("demo") as demo:
        assert demo.end() == 0, demo.said
        assert "8 of 8" in demo.said


def test_sigterm_lets_a_running_request_end() -> None:
    wish = {"model": "storyteller", "prompt": "Once", "max_tokens": 600, "ignore_eos": True}
    with running(*real_launch()) as launch:
        url = launch.until(r"serving storyteller at (http://\S+)\n")[1]
        with opened(f"{url}/v1/completions", wish | {"stream": True}) as answer:
            lines = [answer.readline()]
            launch.process.send_signal(signal.SIGTERM)
            lines += answer.readlines()
        assert launch.end() == 0, launch.said
    events = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]
    assert events[-1].strip() == b"[DONE]"
    reasons = [json.loads(each)["choices"][0]["finish_reason"] for each in events[:-1]]
    assert [each for each in reasons if each] == ["length"]
    assert "a second signal stops at once" in launch.said


@pytest.mark.parametrize("after_s", [0.6, 1.2, 2.0, 3.5])
def test_ctrl_c_while_a_real_model_starts(after_s: float) -> None:
    """Whatever it is doing then: starting Python, importing torch, loading weights, serving."""
    with running(*real_launch()) as launch:
        time.sleep(after_s)
        for _ in range(2):
            launch.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert launch.end() in (0, 130, -signal.SIGINT), launch.said


def test_ctrl_c_while_one_answer_is_computed() -> None:
    wish = ["--prompt", "Once", "--max-tokens", "400", "--ignore-eos"]
    with running(*real_launch(*wish)) as launch:
        launch.until(r"worker-1 \(pid \d+\): ready")
        launch.process.send_signal(signal.SIGINT)
        assert launch.end() in (0, 130), launch.said
