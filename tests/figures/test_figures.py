"""``dvrt figures``: pictures and data of a figure, and the page that is made of all data files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dvrt.bench.figures import step_times
from dvrt.bench.figures.catalog import FIGURES, choose
from dvrt.bench.figures.figure import Findings, Source
from dvrt.bench.figures.making import make_figures, read_findings
from dvrt.bench.figures.page import MISSING, make_page
from dvrt.bench.figures.rates import crossing
from dvrt.bench.figures.reports import Known, ratio_rows
from dvrt.bench.figures.store import Store, to_text
from dvrt.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PNG = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 1_000_000


@pytest.fixture(scope="module")
def findings() -> Findings:
    return read_findings(Store(DOCS / "figures/data"))


def section(page: str, title: str) -> str:
    return page.partition(f"\n## {title}")[2].partition("\n## ")[0]


def test_the_page_is_what_the_data_says(findings: Findings) -> None:
    assert (DOCS / "paper.md").read_text() == make_page(findings, "figures"), "make figures"


def test_the_pages_pictures_are_there_and_small() -> None:
    named = re.findall(r"\]\(([^)]+\.png)\)", (DOCS / "paper.md").read_text())
    pictures = [DOCS / name for name in named]
    assert pictures
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)
    held = [path for path in (DOCS / "figures").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in held) < MOST_BYTES
    assert {path for path in held if path.suffix == ".png"} == set(pictures)


def run_figures(out: Path, *names: str) -> str:
    """The command's stdout. In a process of its own: matplotlib keeps its font files open."""
    only = [part for name in names for part in ("--only", name)]
    command = [sys.executable, "-m", "dvrt", "figures", *only, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(110)
def test_the_command_makes_one_figure_and_says_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    assert run_figures(out, "fig02").strip() == str(tmp_path / "paper.md")
    assert [path.name for path in out.glob("*.png")] == ["fig02.png"]
    page = (tmp_path / "paper.md").read_text()
    assert "](pictures/fig02.png)" in section(page, "Fig. 2")
    assert MISSING not in section(page, "Fig. 2")
    for figure in FIGURES[1:]:
        assert MISSING in section(page, figure.title)
        assert f"{figure.name}.png" not in page


def test_an_unknown_figure_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fig99.*fig02"):
        make_figures(tmp_path / "figures", only=["fig02", "fig99"])
    assert list(tmp_path.iterdir()) == []


def test_a_result_fills_its_row_by_itself(findings: Findings) -> None:
    full = section(make_page(findings, "figures"), "Fig. 9")
    assert MISSING not in full
    without = {name: each for name, each in findings.items() if name != "swap"}
    empty = section(make_page(without, "figures"), "Fig. 9")
    assert MISSING in empty
    assert "figures --fresh --only fig09" in empty
    assert "png" not in empty


def test_another_result_gives_another_page(findings: Findings) -> None:
    swap = json.loads(json.dumps(findings["swap"]))
    swap["ratios"]["opt66b_swap_gain"] = 1.2345
    assert "| 1.23x |" in section(make_page({**findings, "swap": swap}, "figures"), "Fig. 9")


@pytest.mark.timeout(110)
def test_every_figure_draws_what_is_there(findings: Findings, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    store = Store(out / "data")
    (out / "data").mkdir(parents=True)
    for figure in FIGURES:
        for source in figure.sources:
            if source.name in findings:
                store.path(source).write_text(to_text(findings[source.name]))
    slow = [each.name for each in FIGURES if all(source.slow for source in each.sources)]
    run_figures(out, *slow)
    drawn = {figure.name for figure in choose(slow) if figure.found(findings)}
    assert {path.stem for path in out.glob("*.png")} == drawn
    assert (tmp_path / "paper.md").read_text() == make_page(findings, "figures")


def test_step_times_grow_as_a_roofline_does() -> None:
    for found in step_times.make(True).values():
        prompts = [step_times.cell(found, 8, n)[0] for n in step_times.PROMPTS]
        assert prompts == sorted(prompts)
        short, long = step_times.cell(found, 1, 250), step_times.cell(found, 8, 2000)
        assert 1 < short[0] / short[1] < long[0] / long[1]


def test_a_ratio_that_nobody_knows_is_shown_by_its_name() -> None:
    report = {"ratios": {"novel": 3.0, "known_ms": 12.5, "gain": 1.5}}
    known = {
        "gain": Known(what="gain", how="measured", paper="2x"),
        "known_ms": Known(what="delay", how="measured", unit="ms"),
        "absent": Known(what="absent", how="measured"),
    }
    rows = list(ratio_rows(report, known, others="measured"))
    assert [(row.what, row.ours) for row in rows] == [
        ("gain", "1.50x"),
        ("delay", "12.5 ms"),
        ("`novel`", "3"),
    ]


def test_where_a_curve_leaves_its_bound() -> None:
    rates = [1.0, 2.0, 3.0]
    assert crossing(rates, {"unloaded_s": 1.0, "median_s": [1.0, 2.0, 1.2]}) == 1.5
    assert crossing(rates, {"unloaded_s": 1.0, "median_s": [1.0, 1.2, 1.5]}) == 3.0


@pytest.mark.parametrize("content", ["{", "[1]", '{"results": {}}', '{"results": 3, "ratios": {}}'])
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, content: str) -> None:
    out = tmp_path / "figures"
    (out / "data").mkdir(parents=True)
    (out / "data/swap.json").write_text(content)
    with pytest.raises(ConfigError, match=r"data"):
        make_figures(out, only=["fig09"])


def test_slow_data_is_made_on_demand_only(tmp_path: Path) -> None:
    made: list[bool] = []

    def make(quick: bool) -> dict[str, Any]:
        made.append(quick)
        return {"x": 1 / 3}

    store, said = Store(tmp_path / "data"), list[str]()
    source = Source(name="given", make=make, slow=True)
    store.obtain(source, fresh=False, quick=True, say=said.append)
    assert store.read(source) is None
    store.obtain(source, fresh=True, quick=True, say=said.append)
    assert store.read(source) == {"x": 0.33333333}
    store.obtain(source, fresh=False, quick=False, say=said.append)
    assert made == [True]
    assert [line.partition(" (")[0] for line in said] == [
        "given: not made yet",
        "given: being made",
        f"given: read from {tmp_path / 'data/given.json'}",
    ]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_computed() -> None:
    told: list[str] = []
    with pytest.raises(ConfigError, match=r"out is /proc/x/figures, which cannot be made: No such"):
        make_figures(Path("/proc/x/figures"), only=["fig02"], say=told.append)
    assert not told
