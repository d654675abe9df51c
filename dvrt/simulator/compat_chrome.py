"""A Chrome trace of the public simulators' visits: one process a stage, ``p0`` and ``t0,3``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dvrt.simulator.compat_steps import Visit


class VisitTrace:
    """Collects visits; call it with each. Stages below 0 are the prompt pipeline's, in order."""

    def __init__(self, *, prompt_machines: int = 0) -> None:
        self._prompt_machines = prompt_machines
        self._events: list[dict[str, Any]] = []
        self._stages: set[int] = set()

    def __call__(self, visit: Visit) -> None:
        pid = visit.stage + self._prompt_machines
        self._stages.add(pid)
        name = f"p{visit.microbatch}"
        if visit.token is not None:
            name = f"t{visit.microbatch},{visit.token}"
        self._events.append(
            {"name": name, "ph": "X", "pid": pid, "ts": visit.start_us, "dur": visit.duration_us}
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        """The visits as complete events (``ph`` X), in the order in which they were processed."""
        return self._events

    def write(self, path: Path) -> None:
        """Write names of the stages and all events as a JSON list, which Perfetto opens too."""
        names = [self._name_event(pid) for pid in sorted(self._stages)]
        path.write_text(json.dumps(names + self._events))

    def _name_event(self, pid: int) -> dict[str, Any]:
        name = f"Stage {pid}"
        if self._prompt_machines:
            is_prompt = pid < self._prompt_machines
            number = pid if is_prompt else pid - self._prompt_machines
            name = f"{'Prompt' if is_prompt else 'Token'} Pipeline, Stage {number}"
        return {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
