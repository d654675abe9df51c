"""Every example runs, as a reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[2]


def run(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(HOUSE / "examples" / name), *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=HOUSE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart() -> None:
    out = run("quickstart.py")
    assert out.count(": process ") == 3
    assert "8 tokens after [1, 2, 3]" in out
    assert len(out.split()) > 60


def test_embedded() -> None:
    out = run("embedded.py")
    assert all(f"{name} read: " in out for name in ("Ann", "Bo", "Cy"))
    assert "Di left after: " in out
    assert "the clock beat" in out


def test_disaggregated() -> None:
    out = run("disaggregated.py")
    assert "worker-0: prompt stage 0, layers (0, " in out
    assert "worker-2: token stage 1" in out
    assert "now worker-0 prompt, worker-1 prompt, worker-2 token" in out
    assert out.count(" tokens  ") == 8
    assert "8 answers" in out


def test_swapping(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    out = run("swapping.py", "--trace", str(trace))
    assert "swapped: batch 8" in out
    lanes = {
        line.split()[0] if line.split()[0] == "compute" else " ".join(line.split()[:2])
        for line in out.splitlines()[-3:]
    }
    assert lanes == {"compute", "copies in", "copies out"}
    assert all(any(digit in line for digit in "01234") for line in out.splitlines()[-3:])
    assert '"copies' not in out and trace.stat().st_size > 10_000
