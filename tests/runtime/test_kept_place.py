"""Logs on disk are found again by what they were made with, and by nothing else."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest

from dvrt.cluster.engine import Engine
from dvrt.cluster.persistence import kept_directory, remove_others
from dvrt.cluster.plan import plan_cluster
from dvrt.config import LaunchOptions
from dvrt.models.tiny import write_tiny
from tests.runtime.crowd import kill, virtual

Texts = list[list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("kept") / "tiny", "gpt2", n_layers=4)


def wishes(salt: int) -> list[dict[str, Any]]:
    rng = random.Random(salt)
    usual = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 45}
    return [{"prompt": [rng.randrange(100) for _ in range(30)], **usual} for _ in range(12)]


async def answers(engine: Engine, salt: int) -> Texts:
    done = await asyncio.gather(*(engine.complete(**wish) for wish in wishes(salt)))
    return [list(each.token_ids) for each in done]


def test_another_journals_logs_do_not_answer_to_the_same_numbers(
    model: Path, tmp_path: Path
) -> None:
    kept = {"stages": 2, "replicas": 0, "persist": str(tmp_path)}
    right = virtual(model, lambda engine: answers(engine, 2), stages=1)
    virtual(model, lambda engine: answers(engine, 1), **kept)
    for path in tmp_path.glob("journal.db*"):
        path.unlink()

    async def with_a_loss(engine: Engine) -> Texts:
        asking = asyncio.create_task(answers(engine, 2))
        await asyncio.sleep(0.6)
        kill(engine, "worker-1")
        return await asking

    assert virtual(model, with_a_loss, **kept) == right
    assert len(list(tmp_path.glob("kv-*"))) == 1


def test_whatever_changes_the_bytes_changes_the_place(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny", "gpt2", n_layers=2)

    def place(secret: bytes = b"s", **options: Any) -> Path | None:
        chosen = LaunchOptions.make(model=str(model), persist=str(tmp_path), **options)
        return kept_directory(chosen, plan_cluster(chosen, model), secret)

    usual = place()
    assert usual is not None
    assert usual.parent == tmp_path
    others = [place(b"t"), place(dtype="bfloat16"), place(exact=False), place(batch_size=3)]
    weights = next(model.glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    others.append(place())
    assert len({usual, *others}) == 1 + len(others)
    assert place(stages=2, spares=1, port=1) == place()


def test_what_others_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("kv-a", "kv-b", "mine"):
        (tmp_path / name / "layers-0-2").mkdir(parents=True)
    (tmp_path / "kv-file").write_text("not a directory")
    remove_others(tmp_path / "kv-b")
    assert {path.name for path in tmp_path.iterdir()} == {"kv-b", "kv-file", "mine"}
