"""``make gpu-check``: what it says without a GPU, and how it judges what it finds with one."""

from __future__ import annotations

import json
import sys

import pytest

from tests.gpu import check
from tests.gpu.check import FAILED, NO_GPU, WELL, Outcome, judge, main, read_outcomes

REPORT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.gpu.test_device" name="test_a" time="1.5" />
<testcase classname="tests.gpu.test_device" name="test_b" time="0.1">
<failure message="no" /></testcase>
<testcase classname="t" name="test_c"><skipped message="no ucx on this machine" /></testcase>
<testcase classname="t" name="test_d"><error message="left behind" /></testcase>
</testsuite></testsuites>"""
GOOD = Outcome("a", "passed", 1.0)
BENCH = {"ratios": {"overlap_vs_none": 1.9}}


def test_a_report_is_read():
    assert read_outcomes(REPORT) == [
        Outcome("tests.gpu.test_device::test_a", "passed", 1.5),
        Outcome("tests.gpu.test_device::test_b", "failed", 0.1, "no"),
        Outcome("t::test_c", "skipped", 0.0, "no ucx on this machine"),
        Outcome("t::test_d", "error", 0.0, "left behind"),
    ]


@pytest.mark.parametrize(
    ("more", "bench", "code"),
    [
        ([], BENCH, WELL),
        ([Outcome("b", "skipped", 0.0, "no ucx on this machine")], BENCH, WELL),
        ([Outcome("b", "skipped", 0.0, "no gpu on this machine")], BENCH, FAILED),
        ([Outcome("b", "failed", 0.0, "x")], BENCH, FAILED),
        ([Outcome("b", "error", 0.0, "x")], BENCH, FAILED),
        ([], None, FAILED),
        ([], {"ratios": {}}, FAILED),
    ],
)
def test_a_verdict(more, bench, code):
    assert judge([GOOD, *more], bench) == code
    assert judge([], bench) == FAILED


def test_without_a_gpu_nothing_is_checked(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check, "missing", lambda: "no NVIDIA GPU is visible here")
    assert main(["--out", str(tmp_path / "out.json")]) == NO_GPU
    assert "no NVIDIA GPU is visible here; nothing was checked" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("bench", [BENCH, None])
def test_all_of_it_is_written_and_shown(monkeypatch, capsys, tmp_path, bench):
    monkeypatch.setattr(check, "missing", lambda: None)
    monkeypatch.setattr(check, "run_tests", lambda: read_outcomes(REPORT))
    monkeypatch.setattr(check, "run_bench", lambda *, quick: bench)
    out = tmp_path / "out.json"
    assert main(["--quick", "--out", str(out)]) == FAILED
    told = json.loads(out.read_text())
    assert told["is_well"] is False
    assert len(told["tests"]) == 4
    assert told["bench"] == bench
    shown = capsys.readouterr().out
    assert "tests passed" in shown and "left behind" in shown
    assert ("overlap_vs_none" if bench else "bench gpu") in shown


def test_tests_run_in_a_process_of_their_own(tmp_path):
    path = tmp_path / "test_one.py"
    path.write_text("def test_one(): pass\n")
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(path), "--junitxml")
    [outcome] = check.run_tests(arguments)
    assert outcome.result == "passed"
    assert check.run_tests(("-c", "pass")) == []


def test_a_bench_that_fails_is_no_report(monkeypatch):
    monkeypatch.setattr(check, "BENCH", ("-c", "raise SystemExit(2)"))
    assert check.run_bench(quick=False) is None
    monkeypatch.setattr(check, "BENCH", ("-c", "print('{}')"))
    assert check.run_bench(quick=False) == {}
    assert sys.executable
