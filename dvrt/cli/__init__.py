"""The command line: ``main`` and nothing that takes time to import.

Exit codes: 0 done, also a server that was told to stop; 1 failed, with one line on stderr; 2 the
command or an option is wrong; 130 and 143 ended by SIGINT and SIGTERM before its work was done.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from dvrt.cli.signals import exit_on_signals
from dvrt.errors import ConfigError, DvrtError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit. A failure is one line on stderr; ``--debug`` adds the traceback."""
    exit_on_signals()
    _take_standard_files()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from dvrt.cli.app import run_command

        sys.exit(run_command(given))
    except DvrtError as error:
        fail(str(error), debug="--debug" in given)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except Exception as error:
        fail(f"internal error: {type(error).__name__}: {error}", debug="--debug" in given)
        sys.exit(1)


def _take_standard_files() -> None:
    """No file that is opened later must become stdin, stdout or stderr where those are closed."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def fail(message: str, *, debug: bool) -> None:
    """Say on stderr, in one line, what went wrong in the exception that is being handled."""
    if debug:
        traceback.print_exc()
    print("dvrt:", " ".join(message.split()), file=sys.stderr)
