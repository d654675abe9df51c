"""``dvrt bench``: names, tables, JSON, and what a signal does to a measurement."""

from __future__ import annotations

import io
import json
import signal
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from dvrt.bench.common import Measured, spread
from dvrt.cli import bench
from dvrt.cli.signals import interruptible

MEASURED = Measured(
    results={
        "steps": 3,
        "model": {"tokens_per_s": spread([1.0, 3.0, 2.0]), "each": [1, 2]},
    },
    ratios={"ours_vs_theirs": 1.25},
    notes=["a quiet machine"],
)


def printed(capsys: pytest.CaptureFixture[str], *, as_json: bool) -> str:
    bench.show("made_up", quick=True, as_json=as_json)
    return capsys.readouterr().out


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*, quick: bool) -> Measured:
        assert quick
        return MEASURED

    monkeypatch.setitem(sys.modules, "dvrt.bench.made_up", SimpleNamespace(measure=measure))


def test_every_name_has_a_measurement() -> None:
    for name in bench.BENCHMARKS:
        module = bench.import_module(f"dvrt.bench.{name}")
        assert callable(module.measure)


def test_a_table_for_people() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(*bench.tables("made_up", MEASURED))
    text = console.export_text()
    for fact in ("ours_vs_theirs", "1.25", "model.tokens_per_s", "note: a quiet machine"):
        assert fact in text
    assert [cell.strip() for cell in text.split("tokens_per_s")[1].split("│")[1:4]] == [
        "2",
        "1",
        "3",
    ]
    assert "each" not in text


def test_one_json_object(capsys: pytest.CaptureFixture[str], made_up: None) -> None:
    report = json.loads(printed(capsys, as_json=True))
    assert {"machine", "versions", "command", "results", "ratios"} <= set(report)
    assert report["ratios"] == {"ours_vs_theirs": 1.25}
    assert report["results"]["model"]["each"] == [1, 2]


def test_tables_are_printed(capsys: pytest.CaptureFixture[str], made_up: None) -> None:
    assert "ours_vs_theirs" in printed(capsys, as_json=False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_measurement(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end, interruptible():
        signal.raise_signal(number)
    assert end.value.code == code
    assert signal.getsignal(number) is before
