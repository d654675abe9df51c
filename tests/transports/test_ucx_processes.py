"""What the survivor of a ucx channel sees when its peer, a process, is killed.

In a process of its own, since what a killed peer leaves half done may hold UCX's files until the
process ends; for what is as with other transports see ``test_processes``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ucx, pytest.mark.timeout(120)]
SURVIVOR = Path(__file__).with_name("ucx_survivor.py")


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param("killed", marks=pytest.mark.slow),
        pytest.param("elsewhere", marks=pytest.mark.slow),
        "stopped",
        "blocked",
    ],
)
def test_survivor(scenario, kind):
    """See ``ucx_survivor``."""
    if kind == "uvloop":
        pytest.importorskip("uvloop")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    if scenario == "elsewhere":
        environment["UCX_TLS"] = "tcp,self"
    command = [sys.executable, str(SURVIVOR), scenario, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
