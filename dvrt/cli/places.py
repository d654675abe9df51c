"""Where a command is to write: refused before the work, not after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dvrt.errors import ConfigError


def check_places(options: Mapping[str, Any], names: Iterable[str]) -> None:
    """ConfigError unless each that is given is a file in a directory that exists."""
    for name in names:
        path = Path(options.get(name) or "")
        if options.get(name) and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(f"{name} is {path}; it must be a file in a directory that exists")
