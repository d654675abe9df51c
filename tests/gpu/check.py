"""``make gpu-check``: the tests that need a GPU, and what its links reach, as JSON and a table.

    python tests/gpu/check.py [--quick] [--out gpu-check.json]

Ends with 0 where all is well, 1 where a test failed or was skipped, 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).parents[2]
TESTS = ("-m", "pytest", "-q", "-m", "(gpu or ucx) and not chaos", "--junitxml")
BENCH = ("-m", "dvrt", "bench", "gpu", "--json")
WELL, FAILED, NO_GPU = 0, 1, 3


class Outcome(NamedTuple):
    """One test: ``passed``, ``failed``, ``error`` or ``skipped``, and the seconds it took."""

    name: str
    result: str
    seconds: float
    why: str = ""


def missing() -> str | None:
    """What keeps this machine from being checked; None where nothing does."""
    if not Path("/dev/nvidiactl").exists():
        return "no NVIDIA GPU is visible here (/dev/nvidiactl is not there)"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch sees no GPU: install a build of torch for CUDA"
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"CuPy does not work ({error}): pip install 'dvrt[cuda12]' or 'dvrt[cuda13]'"
    return None


def run_tests(arguments: tuple[str, ...] = TESTS) -> list[Outcome]:
    """Run pytest in a process of its own and read what it says of each test."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        subprocess.run([sys.executable, *arguments, str(report)], cwd=ROOT, check=False)
        return read_outcomes(report.read_text()) if report.exists() else []


def read_outcomes(xml: str) -> list[Outcome]:
    """The tests of a JUnit report."""
    found = []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        marks = {mark.tag: mark for mark in case}
        kind = next((tag for tag in ("error", "failure", "skipped") if tag in marks), "passed")
        result = "failed" if kind == "failure" else kind
        why = "" if kind == "passed" else marks[kind].get("message", "")
        found.append(Outcome(name, result, float(case.get("time", 0)), why))
    return found


def run_bench(*, quick: bool) -> dict[str, Any] | None:
    """The report of ``bench gpu``; None where it failed."""
    command = [sys.executable, *BENCH, *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def judge(outcomes: list[Outcome], bench: dict[str, Any] | None) -> int:
    """On a machine with a GPU a GPU test that is skipped was not checked."""
    counts = Counter(outcome.result for outcome in outcomes)
    skipped = [each for each in outcomes if each.result == "skipped" and "ucx" not in each.why]
    is_well = counts["passed"] and not counts["failed"] and not counts["error"] and not skipped
    return WELL if is_well and bench is not None and bench["ratios"] else FAILED


def show(console: Console, outcomes: list[Outcome], bench: dict[str, Any] | None) -> None:
    table = Table("what", "value", title="gpu-check", title_justify="left")
    for result, count in sorted(Counter(outcome.result for outcome in outcomes).items()):
        table.add_row(f"tests {result}", str(count))
    for outcome in outcomes:
        if outcome.result != "passed":
            table.add_row(escape(outcome.name), escape(f"{outcome.result}: {outcome.why[:80]}"))
    if bench is None:
        table.add_row("bench gpu", "failed")
    else:
        for name, value in bench["ratios"].items():
            table.add_row(name, f"{value:.3g}")
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-check.json", help="the JSON file")
    options = parser.parse_args(arguments)
    console = Console()
    why = missing()
    if why is not None:
        console.print(f"gpu-check: {why}; nothing was checked", soft_wrap=True, markup=False)
        return NO_GPU
    outcomes, bench = run_tests(), run_bench(quick=options.quick)
    code = judge(outcomes, bench)
    result = {"is_well": code == WELL, "tests": [each._asdict() for each in outcomes]}
    options.out.write_text(json.dumps({**result, "bench": bench}, indent=1) + "\n")
    show(console, outcomes, bench)
    console.print(f"written: {options.out}", soft_wrap=True, markup=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
