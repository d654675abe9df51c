"""What benchmarks share."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest

from dvrt.bench.common import (
    Measured,
    command,
    interleaved,
    make_report,
    median_ratio,
    quantile,
    spread,
    write_json,
)
from dvrt.errors import ConfigError


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    sides = {name: lambda name=name: side(name) for name in "abc"}
    measured = interleaved(sides, repeats=3, warm_ups=1)
    assert [sorted(order[i : i + 3]) for i in range(0, 12, 3)] == [list("abc")] * 4
    assert {order[i] for i in range(3, 12, 3)} == set("abc")
    counted = sorted(value for values in measured.values() for value in values)
    assert counted == [float(i) for i in range(4, 13)]
    assert [len(values) for values in measured.values()] == [3, 3, 3]


def test_nothing_to_measure() -> None:
    for sides, repeats in (({}, 1), ({"a": lambda: 1.0}, 0)):
        with pytest.raises(ConfigError):
            interleaved(sides, repeats=repeats)


def test_median_ratio() -> None:
    assert median_ratio({"a": [1, 100, 4], "b": [2, 2, 9]}, "a", "b") == 2


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [([5.0], 0.99, 5), ([1.0, 2.0], 0.5, 1.5), ([0.0, 10.0, 20.0], 0.95, 19), ([1.0, 9.0], 1, 9)],
)
def test_quantile(values: list[float], share: float, wanted: float) -> None:
    assert quantile(values, share) == pytest.approx(wanted)
    assert math.isnan(quantile([], share))


def test_spread() -> None:
    found = spread(value for value in (3.0, 1.0, 2.0))
    assert found == {"median": 2.0, "min": 1.0, "max": 3.0, "repeats": [3.0, 1.0, 2.0]}
    with pytest.raises(ValueError, match="nothing"):
        spread([])


def test_report() -> None:
    measured = Measured(results={"a": spread([1.0])}, ratios={"faster": 2.5}, notes=["one core"])
    out = io.StringIO()
    write_json("thing", measured, out)
    assert out.getvalue().count("\n") == 1
    report = json.loads(out.getvalue())
    keys = ["benchmark", "machine", "versions", "command", "results", "ratios", "notes"]
    assert list(report) == keys
    assert report["ratios"] == {"faster": 2.5}
    assert report["versions"]["python"] == sys.version.split()[0]
    assert report["machine"]["usable_cpus"] >= 1
    assert report["machine"]["memory_bytes"] > 1 << 20


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_ratio_that_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="ratio x is"):
        make_report("thing", Measured(results={}, ratios={"x": value}))


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/a/dvrt/__main__.py", "bench", "load", "--url", "x y"])
    assert command() == "python -m dvrt bench load --url 'x y'"
    monkeypatch.setattr(sys, "argv", ["/bin/dvrt", "bench"])
    assert command() == "/bin/dvrt bench"
