"""Tables and progress, on a terminal and on a pipe."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from dvrt.cli.demo import Story, stories_table, work_table
from dvrt.cli.display import StartDisplay, layers_text, workers_table
from dvrt.results import Status, WorkerStatus

WORKER = WorkerStatus(
    name="stage-0",
    pid=4242,
    role="stage",
    stage=0,
    layers=(0, 4),
    state="loading",
    device="cpu",
)
READY = replace(
    WORKER, state="ready", weights_bytes=3 << 20, kv_bytes=1 << 20, steps=20, busy_s=0.5
)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_layers_as_people_count() -> None:
    assert [layers_text(each) for each in ((0, 4), (4, 5), None)] == ["0-3", "4", "-"]


def test_a_pipe_gets_a_line_for_each_change() -> None:
    pipe = console()
    with StartDisplay(pipe) as display:
        for worker in (WORKER, WORKER, replace(WORKER, weights_bytes=7), READY):
            display.update(worker)
    assert written(pipe).splitlines() == [
        "stage-0 (pid 4242): loading, layers 0-3, 0 B",
        "stage-0 (pid 4242): ready, layers 0-3, 3.0 MiB",
    ]


def test_a_terminal_gets_a_live_table_that_goes_away() -> None:
    terminal = console(terminal=True)
    with StartDisplay(terminal) as display:
        display.update(WORKER)
        assert "loading" in written(terminal)
        display.update(replace(WORKER, weights_bytes=1 << 20, weights_total=3 << 20))
        assert "1.0 MiB of 3.0 MiB" in written(terminal)
        display.update(READY)
        assert "3.0 MiB" in written(terminal)
    assert written(terminal).endswith("\x1b[2K")


def test_tables_hold_the_facts() -> None:
    status = Status(
        model="m",
        state="serving",
        workers=(READY, replace(READY, name="spare", stage=None, layers=None, steps=0)),
        n_queued=0,
        n_running=0,
        n_rows=0,
        n_finished=8,
        uptime_s=1.0,
    )
    story = Story(
        prompt="One day", n_tokens=11, first_token_s=0.1, total_s=1.1, finish_reason="eos"
    )
    out = console()
    out.print(workers_table(status.workers), stories_table([story]), work_table(status))
    text = written(out)
    for fact in ("4242", "0-3", "3.0 MiB", "One day", "100 ms", "10", "eos", "25.0 ms", "0.50 s"):
        assert fact in text
