"""What people see: workers as a table, start-up as it goes on. On a pipe, plain lines."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dvrt.options import format_size
from dvrt.results import WorkerStatus


def workers_table(workers: Iterable[WorkerStatus], *, title: str | None = None) -> Table:
    """One line a worker: who it is, what it holds, how it fares."""
    table = Table(title=title, title_justify="left")
    for column in ("worker", "pid", "role", "stage", "layers", "device"):
        table.add_column(column)
    table.add_column("weights", justify="right")
    table.add_column("state")
    for worker in by_stage(workers):
        table.add_row(
            worker.name,
            str(worker.pid),
            worker.role,
            "-" if worker.stage is None else str(worker.stage),
            layers_text(worker.layers),
            worker.device,
            weights_text(worker),
            worker.state,
        )
    return table


def by_stage(workers: Iterable[WorkerStatus]) -> list[WorkerStatus]:
    """Along the pipelines; workers without a stage come last."""
    return sorted(
        workers, key=lambda each: (each.stage is None, each.pipeline or 0, each.stage, each.name)
    )


def weights_text(worker: WorkerStatus) -> str:
    """What a worker has of its weights, and of how many while it reads them."""
    here = format_size(worker.weights_bytes)
    is_reading = worker.state == "loading" and worker.weights_bytes < worker.weights_total
    return f"{here} of {format_size(worker.weights_total)}" if is_reading else here


def layers_text(layers: tuple[int, int] | None) -> str:
    """The half-open interval as people count: ``0-3`` for (0, 4)."""
    if layers is None:
        return "-"
    first, end = layers
    return f"{first}-{end - 1}" if end - first > 1 else str(first)


class StartDisplay:
    """Start-up on ``console``: a live table on a terminal, a line per change of state elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._workers: dict[str, WorkerStatus] = {}
        self._live: Live | None = None
        self._is_over = False

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        if self._live is not None:
            self._live.stop()

    def update(self, worker: WorkerStatus) -> None:
        """Take a worker's news; made to be the engine's ``on_progress``. Later ones are ignored."""
        if self._is_over:
            return
        before = self._workers.get(worker.name)
        self._workers[worker.name] = worker
        if self._live is not None:
            table = workers_table(self._workers.values())
            self._live.update(table, refresh=True)
        elif before is None or before.state != worker.state:
            self._console.print(
                f"{worker.name} (pid {worker.pid}): {worker.state}, "
                f"layers {layers_text(worker.layers)}, {weights_text(worker)}",
                highlight=False,
                soft_wrap=True,
            )
