"""examples/stream_kv.py does what it says, in two real processes."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "stream_kv.py"


def test_two_processes_exchange_a_cache():
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=50, check=False
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert sorted(lines[:-1]) == sorted(
        f"from stage {layer // 6}: layers [{layer}, {layer + 1}), positions [0, 200)"
        for layer in range(12)
    )
    assert lines[-1] == "proved: AAAAAABBBBBB"


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 90
