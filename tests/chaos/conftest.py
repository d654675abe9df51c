"""One tiny model for all of this, and its undisturbed answers."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvrt.chaos.campaign import Campaign
from dvrt.chaos.traffic import Answer
from dvrt.chaos.virtual_run import right_answers
from dvrt.models.tiny import write_tiny

N_LAYERS = 5


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chaos") / "tiny"
    generation = {"eos_token_id": 256}
    return write_tiny(directory, "llama", n_layers=N_LAYERS, tokenizer=True, generation=generation)


@pytest.fixture(scope="session")
def right(model: Path) -> dict[int, Answer]:
    return right_answers(model)


@pytest.fixture(scope="session")
def campaign(model: Path) -> Campaign:
    return Campaign(model=model, n_layers=N_LAYERS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Faults are logged by whom they meet; here they are the point. And there is little to collect
    for those who collect garbage when they close a stage."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    gc.freeze()
    yield
    gc.unfreeze()
    logging.disable(before)
