"""The data files behind the figures: made, written, read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dvrt.bench.common import write_json
from dvrt.bench.figures.figure import Source
from dvrt.errors import ConfigError

DIGITS = 8


def bench_source(name: str) -> Source:
    """The object that ``bench NAME --json`` prints, and a file that holds it."""

    def make(quick: bool) -> Mapping[str, Any] | None:
        module = f"dvrt.bench.{name}"
        if find_spec(module) is None:
            return None
        text = io.StringIO()
        write_json(name, import_module(module).measure(quick=quick), text)
        report: Mapping[str, Any] = json.loads(text.getvalue())
        return report

    return Source(name=name, make=make, slow=True)


class Store:
    """A folder with one JSON file a source."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, source: Source) -> Path:
        return self._folder / f"{source.name}.json"

    def obtain(
        self, source: Source, *, fresh: bool, quick: bool, say: Callable[[str], None]
    ) -> None:
        """Make the source's file, or leave the one that is there; tell ``say`` which."""
        path = self.path(source)
        if source.slow and not fresh:
            there = f"read from {path}" if path.exists() else "not made yet"
            say(f"{source.name}: {there} (--fresh makes it)")
            return
        say(f"{source.name}: being made")
        made = source.make(quick)
        if made is None:
            say(f"{source.name}: there is no such benchmark yet")
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path.write_text(to_text(made))

    def read(self, source: Source) -> Any:
        """The file's content; None where there is none. ConfigError for what is no JSON object."""
        path = self.path(source)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold one JSON object")
        return content


def to_text(content: Mapping[str, Any]) -> str:
    """The file's text: equal content, equal bytes."""
    return json.dumps(_rounded(content), allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    """Digits beyond those that anybody reads only make files differ."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value
