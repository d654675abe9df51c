"""Exact mode computes with one thread: whoever asks for more is told how to get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.cluster.plan import plan_cluster
from dvrt.config import LaunchOptions
from dvrt.errors import ConfigError
from dvrt.models.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("threads") / "tiny", "gpt2", n_layers=2)


def test_the_refusal_names_the_option_and_the_way_out(model: Path) -> None:
    options = LaunchOptions.make(model=str(model), device="cpu", threads=2)
    with pytest.raises(ConfigError) as refusal:
        plan_cluster(options, model)
    text = "threads is 2; exact mode computes with one: set exact=False (--no-exact) for more"
    assert str(refusal.value) == text


def test_the_way_out_is_one(model: Path) -> None:
    options = LaunchOptions.make(model=str(model), device="cpu", threads=2, exact=False)
    assert plan_cluster(options, model)
