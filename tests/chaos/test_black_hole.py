"""A network that swallows what passes between two workers; in a namespace, with its own routes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TRIAL = "ip rule add pref 5 ipproto tcp dport 9 blackhole"


def unshared(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--map-root-user", "--net", *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    try:
        trial = unshared("sh", "-c", TRIAL)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if trial.returncode:
        pytest.skip(f"no network namespace with rules can be had: {trial.stderr.strip()}")


def swallowed(seconds: float) -> Any:
    ended = unshared(sys.executable, "-m", "tests.chaos.black_hole", str(seconds))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_its_neighbour_never_reaches_again_is_replaced() -> None:
    seen = swallowed(0)
    assert seen["is_right"]
    [(name, reason)] = seen["lost"]
    assert name == "worker-1"
    assert "do not reach each other" in reason


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seconds", [0.3, 4.0, 14.0])
def test_what_is_swallowed_for_a_while_costs_nobody_their_place(seconds: float) -> None:
    """Links that saw no acknowledgement for ten seconds are given up, and made anew."""
    assert swallowed(seconds) == {"is_right": True, "lost": []}
