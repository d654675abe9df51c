"""Fixtures of the actor runtime's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["same node", "local", "tcp"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the actor that is talked to lives."""
    return str(request.param)
