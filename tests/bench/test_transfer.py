"""``bench transfer``: every side moves the right bytes, and what is missing is said."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from dvrt.bench import transfer
from dvrt.bench.transfer_cases import CASES, POOL_BYTES
from dvrt.bench.transfer_nixl import open_nixl


def test_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "QUICK_CASES", ("1MiB", "scatter_1.5KiB"))
    monkeypatch.setattr(transfer, "open_nixl", lambda: contextlib.nullcontext(None))
    measured = transfer.measure(quick=True)
    assert list(measured.results)[:2] == ["1MiB", "scatter_1.5KiB"]
    sides = {"memcpy", "socket", "auto", "shm", "tcp", "auto_into"}
    assert sides <= measured.results["scatter_1.5KiB"].keys()
    assert "auto_digest" in measured.results["1MiB"]
    assert measured.results["1MiB"]["auto"]["median"] > 0.05
    assert measured.ratios.keys() == {"small_vs_socket"}
    assert "nixl: not measured; make nixl brings it" in measured.notes
    assert "auto picked shm" in measured.notes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_chunks_lie_in_the_pool_and_apart(case) -> None:
    starts = np.sort([at for slot in range(case.slots) for at in case.offsets(slot)])
    assert (np.diff(starts) >= case.chunk_bytes).all()
    assert starts[-1] + case.chunk_bytes <= POOL_BYTES


def test_ratios() -> None:
    taken = {
        "64MiB": {"auto": [10.0], "memcpy": [12.5], "tcp": [4.0], "socket": [4.0], "nixl": [5.0]},
        "scatter_8KiB": {"auto": [10.0], "nixl": [2.0]},
        "8MiB": {"auto": [1.0]},
    }
    assert transfer._ratios(taken) == {
        "auto_vs_memcpy_64MiB": 0.8,
        "auto_vs_nixl_64MiB": 2.0,
        "auto_vs_nixl_scatter_8KiB": 5.0,
        "tcp_vs_socket_64MiB": 1.0,
    }


def test_without_nixl(tmp_path: Path) -> None:
    with open_nixl(tmp_path / "python") as nixl:
        assert nixl is None


def interpreter(path: Path, script: str) -> Path:
    """Something that stands where NIXL's Python would."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_nixl_that_does_not_come_up(tmp_path: Path) -> None:
    with open_nixl(interpreter(tmp_path / "python", "echo no plugins; exit 1")) as nixl:
        assert nixl is None


def test_nixl_answers_or_fails(tmp_path: Path) -> None:
    script = "echo some log; echo ready; read a; echo 0.25; read a; echo 'other bytes'; read a"
    with open_nixl(interpreter(tmp_path / "python", script)) as nixl:
        assert nixl is not None
        assert nixl.run(0, 1) == 0.25
        with pytest.raises(RuntimeError, match="other bytes"):
            nixl.run(0, 1)
