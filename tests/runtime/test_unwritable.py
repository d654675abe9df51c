"""A request that the journal cannot hold is refused, and disturbs nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dvrt.cluster.engine import Engine
from dvrt.errors import RequestRejected
from dvrt.models.tiny import write_tiny
from tests.runtime.crowd import virtual

WISH = {"max_tokens": 60, "temperature": 0.0, "ignore_eos": True}


@pytest.mark.parametrize(
    "bad", [{"stop_ids": [1 << 70]}, {"deadline_s": 1 << 70}, {"request_id": "\ud800"}], ids=str
)
def test_what_cannot_be_written_down_is_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    model = write_tiny(tmp_path / "tiny", "gpt2", n_layers=2)

    async def work(engine: Engine) -> int:
        other = asyncio.create_task(engine.complete([1, 2, 3], **WISH))
        await asyncio.sleep(0.3)
        with pytest.raises(RequestRejected):
            await engine.complete([5, 6], **{**WISH, **bad})
        assert engine.is_journalled
        return len((await other).token_ids)

    assert virtual(model, work, stages=1, journal=str(tmp_path / "journal.db")) == 60
