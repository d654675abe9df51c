"""A process that simulates sweep configurations: JSON lines in and out until its input ends.

The first line is the sweep's input, each further one a configuration; each answer is one line of
makespan and visits. The parent's half is ``SweepWorker``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from dvrt.errors import DvrtError
from dvrt.planner.model_info import ModelInfo
from dvrt.simulator.compat_sweep import RunOutcome, SweepInput, SweepRun, execute

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from dvrt.simulator.compat_worker import main; main()"
)


class SweepWorker:
    """One such process. Blocking; one configuration at a time; a context manager that ends it."""

    def __init__(self, given: SweepInput) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._header: str | None = json.dumps(asdict(given)) + "\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def execute(self, run: SweepRun) -> RunOutcome:
        """The outcome of one configuration; DvrtError when the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = (self._header or "") + json.dumps(asdict(run)) + "\n"
        self._header = None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise DvrtError(f"the process that simulated {run.key} ended")
        makespan_s, visits = json.loads(answer)
        return RunOutcome(makespan_s, visits)

    def kill(self) -> None:
        """End the process now; whoever waits in ``execute`` gets DvrtError."""
        self._process.kill()


def main() -> None:
    """The process itself. An interrupt is for the parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = _sweep_input(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        outcome = execute(given, SweepRun(**json.loads(line)))
        sys.stdout.write(json.dumps([outcome.makespan_s, outcome.visits]) + "\n")
        sys.stdout.flush()


def _sweep_input(document: dict[str, Any]) -> SweepInput:
    lists = {name: tuple(document[name]) for name in ("lengths", "machine_counts")}
    info = document["info"]
    info |= {name: tuple(info[name]) for name in ("batch_sizes", "prompt_ms", "token_ms")}
    return SweepInput(**document | lists | {"info": ModelInfo(**info)})
