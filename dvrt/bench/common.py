"""What all benchmarks share: interleaved repeats, medians, and the object of ``--json``."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

from dvrt.errors import ConfigError
from dvrt.planner.predict import prediction_error
from dvrt.processes.worker_process import loop_factory

T = TypeVar("T")

PACKAGES = (
    *("dvrt", "torch", "transformers", "tokenizers", "safetensors", "numpy", "uvloop", "msgpack"),
    *("starlette", "uvicorn", "ucxx-cu12", "ucxx-cu13", "cupy-cuda12x", "cupy-cuda13x"),
)
"""Whose versions a result names, where they are installed."""


STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"
"""The small model of this repository, which an installed package is without."""


def run_like_launch(work: Coroutine[Any, Any, T]) -> T:
    """On an event loop of the kind that ``dvrt launch`` serves with."""
    with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
        return runner.run(work)


def require_storyteller() -> Path:
    """Its directory. Raises ConfigError where there is none."""
    if not STORYTELLER.is_dir():
        raise ConfigError(
            "the storyteller is a model in dvrt's repository (examples/storyteller) and not in its "
            "package; run this from a clone"
        )
    return STORYTELLER


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run of one benchmark found.

    ``results`` holds everything measured, repeats included; ``ratios`` maps the names that are
    promised elsewhere to single numbers; ``notes`` say what a reader must know of either.
    """

    results: Mapping[str, Any]
    ratios: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def spread(values: Iterable[float]) -> dict[str, Any]:
    """All repeats of one figure, with their median and extremes. Raises ValueError for none."""
    repeats = list(values)
    if not repeats:
        raise ValueError("nothing was measured")
    return {
        "median": statistics.median(repeats),
        "min": min(repeats),
        "max": max(repeats),
        "repeats": repeats,
    }


def beside(predicted: float, measured: float) -> dict[str, float]:
    """The planner's figure for what was measured, and by how much of that it is off."""
    return {
        "predicted": predicted,
        "measured": measured,
        "prediction_error": prediction_error(predicted, measured),
    }


def make_report(name: str, measured: Measured) -> dict[str, Any]:
    """The object of ``--json``. Raises ValueError for a ratio that is no finite number."""
    wrong = [key for key, value in measured.ratios.items() if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"ratio {wrong[0]} is {measured.ratios[wrong[0]]}")
    return {
        "benchmark": name,
        "machine": machine(),
        "versions": versions(),
        "command": command(),
        "results": dict(measured.results),
        "ratios": dict(measured.ratios),
        "notes": list(measured.notes),
    }


def write_json(name: str, measured: Measured, stream: TextIO | None = None) -> None:
    """The report as one JSON object on one line of ``stream`` (stdout)."""
    text = json.dumps(make_report(name, measured), allow_nan=False)
    out = stream if stream is not None else sys.stdout
    out.write(text + "\n")
    out.flush()


def interleaved(
    sides: Mapping[str, Callable[[], float]], *, repeats: int, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Measure every side ``repeats`` times, taking turns, so that all see the same weather.

    A side returns its figure. Each round begins with another side; ``warm_ups`` rounds before the
    first are not counted. Raises ConfigError for no sides or no repeats.
    """
    if not sides or repeats < 1 or warm_ups < 0:
        raise ConfigError(f"{len(sides)} sides, {repeats} repeats and {warm_ups} warm-ups")
    measured: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-warm_ups, repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            figure = sides[name]()
            if number >= 0:
                measured[name].append(figure)
    return measured


def median_ratio(measured: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """The median of one side divided by the median of another."""
    return statistics.median(measured[over]) / statistics.median(measured[under])


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of all lie, interpolated linearly; NaN where there are none.

    ``values`` must be sorted.
    """
    if not values:
        return math.nan
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "gpus": _gpu_names(),
        "load": list(os.getloadavg()),
    }


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line of this process, fit to be run again."""
    program, *arguments = sys.argv
    is_module = Path(program).name == "__main__.py"
    begin = ["python", "-m", Path(program).parent.name] if is_module else [program]
    return shlex.join([*begin, *arguments])


def _cpu_name() -> str:
    return _first_match(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$") or platform.machine()


def _gpu_names() -> list[str]:
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [name for file in files if (name := _first_match(file, r"^Model:\s*(.+)$"))]


def _first_match(file: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""
