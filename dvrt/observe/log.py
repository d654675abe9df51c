"""Logging of dvrt's own loggers: silent as a library until ``set_up_logging`` is called.

Touches only the logger ``dvrt`` and those below it, never the root logger of an embedding program.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from dvrt.errors import ConfigError

ROOT = "dvrt"
LEVELS = ("debug", "info", "warning", "error")

logging.getLogger(ROOT).addHandler(logging.NullHandler())


class _Handler(logging.StreamHandler[TextIO]):
    """The one handler that this module installs, and recognises when it is called again."""


def set_up_logging(
    level: str = "warning",
    *,
    as_json: bool = False,
    stream: TextIO | None = None,
    origin: str | None = None,
) -> None:
    """Write dvrt's records of ``level`` and above to ``stream`` (stderr), one line each.

    ``origin`` names this process in every line. Calling again replaces the earlier set-up. Raises
    ConfigError for an unknown level.
    """
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r}; there are {', '.join(LEVELS)}")
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter(origin) if as_json else _LineFormatter(origin))
    reset_logging()
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def reset_logging() -> None:
    """Take back what ``set_up_logging`` did."""
    logger = logging.getLogger(ROOT)
    for handler in list(logger.handlers):
        if isinstance(handler, _Handler):
            logger.removeHandler(handler)
            handler.close()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class _LineFormatter(logging.Formatter):
    """time level [origin] logger: message"""

    def __init__(self, origin: str | None) -> None:
        super().__init__()
        self._origin = f" [{origin}]" if origin else ""

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        message = record.getMessage().replace("\n", "\\n")
        line = f"{_timestamp(record)} {level}{self._origin} {record.name}: {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, origin: str | None) -> None:
        super().__init__()
        self._origin = origin

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._origin:
            entry["origin"] = self._origin
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)
