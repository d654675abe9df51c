"""``python -m dvrt`` as people run it: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STORYTELLER = "examples/storyteller"
LIMIT_S = 40


class Process:
    """``python -m dvrt ...``; stdout and stderr as one text that can be waited for."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dvrt", *arguments],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def until(self, pattern: str) -> re.Match[str]:
        """Wait for the pattern in what it says."""
        deadline = time.monotonic() + LIMIT_S
        assert self.process.stdout is not None
        while (found := re.search(pattern, self.said)) is None:
            left_s = deadline - time.monotonic()
            assert select.select([self.process.stdout], [], [], max(0.0, left_s))[0], self.said
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            assert piece, f"it ended without {pattern!r}: {self.said}"
            self.said += piece.decode()
        return found

    def end(self) -> int:
        """Its exit code, once it has ended."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        self.said += out.decode()
        return self.process.returncode

    @property
    def last_line(self) -> str:
        return self.said.strip().splitlines()[-1]


@contextmanager
def running(*arguments: str, **env: str) -> Iterator[Process]:
    made = Process(*arguments, **env)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


def opened(url: str, body: dict[str, Any]) -> Any:
    """The answer to a request, to be read and closed."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=LIMIT_S)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    with opened(url, body) as answer:
        return dict(json.load(answer))
