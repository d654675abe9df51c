"""Checkpoints that several tests read, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dvrt.models.tiny import write_tiny

Checkpoint = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The directory of a tiny checkpoint of a family; read it only."""
    root = tmp_path_factory.mktemp("checkpoints")

    def directory(family: str) -> Path:
        path = root / family
        return path if path.exists() else write_tiny(path, family)

    return directory
