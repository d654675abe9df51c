"""Checkpoints for the attacks, each written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvrt.models.tiny import write_tiny


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer of bytes; 512 positions, 307 ids."""
    directory = tmp_path_factory.mktemp("attack") / "speaking"
    return write_tiny(
        directory, "llama", n_layers=3, tokenizer=True, generation={"eos_token_id": 256}
    )


@pytest.fixture(scope="session")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a tokenizer; 512 positions, 307 ids."""
    return write_tiny(tmp_path_factory.mktemp("attack") / "mute", "gpt2", n_layers=3)
