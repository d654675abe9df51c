"""NIXL beside ``bench transfer``: in its own environment, driven line by line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dvrt.bench.transfer_cases import CASES, POOL_BYTES

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-nixl" / "bin" / "python"
BRING = "make nixl"
"""What makes that environment."""
_SIDE = Path(__file__).with_name("nixl_side.py")
_READY = "ready\n"
_END_S = 30.0


class Nixl:
    """A running pair of NIXL agents."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, number: int, count: int) -> float:
        """Seconds for ``count`` transfers of a case. Raises RuntimeError when NIXL fails."""
        out, into = self._process.stdout, self._process.stdin
        if out is None or into is None:
            raise RuntimeError("NIXL's process has no pipes")
        into.write(f"{number} {count}\n")
        into.flush()
        answer = out.readline()
        try:
            return float(answer)
        except ValueError:
            raise RuntimeError(f"NIXL failed: {answer.strip() or 'it ended'}") from None


@contextlib.contextmanager
def open_nixl(python: Path = PYTHON) -> Iterator[Nixl | None]:
    """Both of NIXL's processes, or None where they cannot be had; they end with the block."""
    if not python.exists():
        yield None
        return
    cases = [
        {"chunk_bytes": case.chunk_bytes, "offsets": [case.offsets(i) for i in range(case.slots)]}
        for case in CASES
    ]
    process = subprocess.Popen(
        [python, _SIDE, json.dumps([POOL_BYTES, cases])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "NIXL_LOG_LEVEL": "ERROR"},
    )
    with process:
        try:
            yield Nixl(process) if _is_ready(process) else None
        finally:
            _end(process)


def _is_ready(process: subprocess.Popen[str]) -> bool:
    """Whether it came up; it logs to stdout before it says so."""
    return any(line == _READY for line in iter(process.stdout.readline, ""))  # type: ignore[union-attr]


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
