"""A checkpoint is read ahead whole, until told to stop, and only where memory permits."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.models import read_ahead


def test_all_tensors_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 500)
    (tmp_path / "config.json").write_text("{}")
    assert read_ahead.read_ahead(tmp_path) == 1500
    assert read_ahead.read_ahead(tmp_path, is_over=lambda: True) == 0
    monkeypatch.setattr(read_ahead, "available_bytes", lambda: 1499)
    assert read_ahead.read_ahead(tmp_path) == 0


def test_memory_is_known() -> None:
    assert read_ahead.available_bytes() > 0
