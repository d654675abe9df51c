"""Importing dvrt, and asking the command line for help, is quick and pulls in nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "cupy", "ucxx", "cuda", "starlette", "uvicorn", "pandas")

PROBE = """
import json, sys, time
before, began = set(sys.modules), time.perf_counter()
{statement}
seconds = time.perf_counter() - began
print(json.dumps([seconds, sorted(n.partition(".")[0] for n in sys.modules.keys() - before)]))
"""


def imported_by(statement: str) -> tuple[float, set[str]]:
    """Seconds, and the top-level modules that came; some packages put theirs into every process."""
    command = [sys.executable, "-c", PROBE.format(statement=statement)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


@pytest.mark.parametrize(
    ("statement", "limit_s"),
    [("import dvrt", 0.5), ("import dvrt.cli.app", 1.5), ("import dvrt.control, dvrt.kv", 0.5)],
)
def test_import_is_light(statement: str, limit_s: float) -> None:
    tries = [imported_by(statement) for _ in range(2)]
    assert tries[0][1] & set(HEAVY) == set()
    assert min(seconds for seconds, _ in tries) < limit_s
