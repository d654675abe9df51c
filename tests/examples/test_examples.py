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
