"""The sweep: its search, its memory rule, its files, its resumption and its speed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dvrt.bench.simulate import measure
from dvrt.errors import ConfigError, DvrtError
from dvrt.planner.model_info import ModelInfo
from dvrt.simulator import compat_pool
from dvrt.simulator.appendix_b import SCENARIOS, appendix_b_input
from dvrt.simulator.compat_model import simulate_colocated, simulate_disaggregated
from dvrt.simulator.compat_pool import PartialSweep, run_sweep, total_visits
from dvrt.simulator.compat_report import (
    PAPER_SPEED_UPS,
    speed_ups,
    sweep_to_json,
    write_outputs,
)
from dvrt.simulator.compat_sweep import (
    MACHINE_COUNTS,
    RunOutcome,
    SweepInput,
    SweepRun,
    choose_best,
    enumerate_runs,
    execute,
)
from dvrt.simulator.compat_worker import SweepWorker

INFO = ModelInfo(
    model="OPT-30B",
    batch_sizes=(4, 8),
    prompt_ms=(1000.0, 2000.0),
    token_ms=(26.0, 29.0),
)
SMALL = SweepInput(
    info=INFO,
    lengths=tuple(range(2, 26)),
    memory_gb=64,
    machine_cost=8.0,
    machine_counts=(1, 2, 4),
)


def test_the_memory_rule() -> None:
    """64 GB: 30 of weights and 1.375 MB times 8 times 2000 = 22 of KV fit, 60 and 11 do not."""
    assert SMALL.fits(2, 8, 2000)
    assert not SMALL.fits(1, 4, 2000)
    assert not replace(SMALL, memory_gb=52).fits(2, 8, 2000)
    keys = {run.key for run in enumerate_runs(SMALL)}
    assert all(run.stages > 1 for run in enumerate_runs(SMALL))
    assert {"Baseline/2/1/8", "Baseline_dp/4/2/8", "DV/4/2-2/8"} <= keys
    assert len(keys) == len(list(enumerate_runs(SMALL)))


def test_one_configuration_is_one_simulation() -> None:
    lengths = [n for n in SMALL.lengths for _ in range(2)]
    apart = SweepRun(method="DV", machines=4, stages=2, batch=4, prompt_machines=2)
    by_hand = simulate_disaggregated(
        lengths,
        prompt_machines=2,
        token_machines=2,
        prompt_time_ms=500,
        token_time_ms=13,
        cache_time_ms=0,
    )
    assert execute(SMALL, apart) == RunOutcome(by_hand.makespan_s, by_hand.visits)
    parted = SweepRun(method="Baseline_dp", machines=4, stages=2, batch=4, ways=2)
    halves = [
        simulate_colocated(half, machines=2, prompt_time_ms=500, token_time_ms=13)
        for half in (lengths[:24], lengths[24:])
    ]
    assert execute(SMALL, parted).makespan_s == max(half.makespan_s for half in halves)


def test_the_best_is_the_first_of_the_fastest() -> None:
    runs = list(enumerate_runs(SMALL))
    outcomes = {run: RunOutcome(10.0, 1) for run in runs}
    rows = choose_best(SMALL, outcomes)
    assert rows[0][0].run is None
    assert rows[0][0].to_json() == {"bs": 0, "total_time": 0.0, "cost": 0.0}
    assert rows[1][0].run == SweepRun(method="Baseline", machines=2, stages=2, batch=4)
    assert rows[2][2].cost == 10.0 / 3600 * 4 * 8.0
    slow = {run: RunOutcome(1e9, 1) for run in runs}
    assert all(best.run is None for row in choose_best(SMALL, slow) for best in row)


def test_processes_and_one_process_agree() -> None:
    alone = run_sweep(SMALL, workers=1)
    assert run_sweep(SMALL, workers=2) == alone
    assert list(alone) == list(enumerate_runs(SMALL))


def test_a_killed_process_is_an_error_and_leaves_nothing() -> None:
    run = next(enumerate_runs(SMALL))
    with SweepWorker(SMALL) as worker:
        assert worker.execute(run) == execute(SMALL, run)
        worker.kill()
        with pytest.raises(DvrtError, match=run.key):
            worker.execute(run)
            worker.execute(run)


def test_stopping_in_the_middle_ends_the_processes() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(appendix_b_input("BLOOM-176B"), workers=2, on_progress=stop)


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sweep.partial"
    done: list[str] = []

    def interrupted(given: SweepInput, run: SweepRun) -> RunOutcome:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(run.key)
        return execute(given, run)

    monkeypatch.setattr(compat_pool, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(SMALL, workers=1, partial=PartialSweep(path, SMALL))
    with path.open("a") as file:
        file.write('["DV/4/1-')  # torn by a crash
    monkeypatch.setattr(compat_pool, "execute", execute)
    partial = PartialSweep(path, SMALL)
    assert sorted(partial.outcomes) == sorted(done)
    progress: list[tuple[int, int]] = []
    outcomes = run_sweep(
        SMALL,
        workers=1,
        partial=partial,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    total = len(outcomes)
    assert progress[0] == (6, total)
    assert progress[-1] == (total, total)
    assert outcomes == run_sweep(SMALL, workers=1)
    assert set(PartialSweep(path, SMALL).outcomes) == {run.key for run in outcomes}
    other = replace(SMALL, memory_gb=80)
    assert PartialSweep(path, other).outcomes == {}
    partial.remove()
    assert not path.exists()


def test_the_files(tmp_path: Path) -> None:
    rows = choose_best(SMALL, run_sweep(SMALL, workers=1))
    path = tmp_path / "out.csv"
    json_path = write_outputs(path, rows)
    with path.open() as file:
        lines = list(csv.reader(file))
    assert lines[0] == [
        "",
        "Num_machines",
        "Baseline",
        "Baseline_dp",
        "DV",
        "Cost_baseline",
        "Cost_baseline_dp",
        "Cost_dv",
    ]
    assert [line[:2] for line in lines[1:]] == [["0", "1"], ["1", "2"], ["2", "4"]]
    assert lines[1][2:] == ["0.0"] * 6
    document = json.loads(json_path.read_text())
    assert document == sweep_to_json(rows)
    assert set(document[2][1]["DV"]) == {"pm", "tm", "bs", "total_time", "cost"}
    assert float(lines[3][2]) == document[2][1]["Baseline"]["total_time"]


def test_a_picture_of_a_sweep(tmp_path: Path) -> None:
    """In a process of its own: matplotlib keeps its font files open."""
    script = (
        "import sys; from pathlib import Path;"
        "from dvrt.simulator.compat_report import draw_sweep;"
        "from dvrt.simulator.compat_sweep import Best, METHODS;"
        "rows = [[Best(method=m, machines=2, makespan_s=3.0, cost=1.0) for m in METHODS]];"
        "draw_sweep(rows, Path(sys.argv[1]), title='t', machine_cost=2.0)"
    )
    path = tmp_path / "sweep.svg"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
    assert "svg" in path.read_text()[:500]


def test_speed_ups_ignore_what_does_not_fit() -> None:
    rows = choose_best(SMALL, run_sweep(SMALL, workers=1))
    ratios = speed_ups(rows)
    assert ratios.dp_over_baseline == rows[2][0].makespan_s / rows[2][1].makespan_s
    assert speed_ups(rows[:2]).dv_over_dp is None


@pytest.mark.parametrize("model", SCENARIOS)
def test_appendix_b_has_the_papers_shape(model: str) -> None:
    """Costs of the baseline grow, it spikes at 14 machines, and both others beat it."""
    given = replace(appendix_b_input(model), machine_counts=(4, 12, 14))
    rows = choose_best(given, run_sweep(given, workers=1))
    baseline, parallel, apart = ([row[at].makespan_s for row in rows] for at in range(3))
    assert baseline[2] > baseline[1]
    assert rows[2][0].cost > rows[0][0].cost
    assert parallel[2] < baseline[2]
    assert apart[2] < parallel[2]
    ratios = speed_ups(rows)
    assert ratios.dv_over_baseline is not None
    assert 2 < ratios.dv_over_baseline < 1.2 * (PAPER_SPEED_UPS.dv_over_baseline or 0)


def test_appendix_b_is_given_as_the_public_sweep_would_get_it() -> None:
    given = appendix_b_input("OPT-66B")
    assert given.machine_counts == MACHINE_COUNTS
    assert given.info.batch_sizes == (4, 8, 16, 32)
    assert len(given.lengths) == 256
    assert len(given.repeated_lengths(4)) == 2048
    assert (given.memory_gb, given.machine_cost) == (320, 18.52)


def test_the_sweep_of_a_model_takes_seconds() -> None:
    """About 400 million events, on two processes, against the 15 s that are asked for."""
    measured = measure(quick=True)
    assert measured.ratios["sweep_seconds"] < 15
    assert measured.results["events"] > 3e8
    assert measured.ratios["events_per_second"] > 2e7


def test_events_are_those_of_all_configurations() -> None:
    outcomes = run_sweep(SMALL, workers=1)
    assert total_visits(outcomes) == sum(execute(SMALL, run).visits for run in outcomes)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"info": replace(INFO, model="OPT-1B")}, "OPT-1B"),
        ({"memory_gb": -1.0}, "memory_gb"),
        ({"machine_cost": float("nan")}, "machine_cost"),
        ({"rps": -0.1}, "rps"),
        ({"machine_counts": (0, 1)}, "at least one"),
        ({"machine_counts": ()}, "at least one"),
        ({"lengths": ()}, "no lengths"),
    ],
)
def test_bad_sweeps(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(SMALL, **wrong)
