"""Whoever waits for the end of a cluster hears of it, whatever ended it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import dvrt
from dvrt.errors import Unavailable
from dvrt.models.tiny import write_tiny
from dvrt.protocol.messages import WarmUp
from tests.actors.puppets import staged

pytestmark = [pytest.mark.virtual, pytest.mark.may_block]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("over") / "tiny", "gpt2", n_layers=2)


async def test_a_controller_that_fails_itself_is_over(model: Path) -> None:
    async with staged(model, stages=2) as stage:
        over = asyncio.create_task(stage.controller.wait_over())
        await stage.controller.me.tell(WarmUp(orders=()))
        error = await asyncio.wait_for(over, 10.0)
        assert isinstance(error, Unavailable)
        assert "WarmUp" in str(error)
        assert stage.controller.state == "stopped"


async def test_too_many_losses_are_the_end_and_a_wait_that_was_cancelled_is_not(
    model: Path,
) -> None:
    async with staged(model, stages=2, max_deaths=0) as stage:
        given_up = asyncio.create_task(stage.controller.wait_over())
        await asyncio.sleep(1.0)
        given_up.cancel()
        over = asyncio.create_task(stage.controller.wait_over())
        await asyncio.sleep(1.0)
        assert not over.done()
        stage.kill("worker-1")
        error = await asyncio.wait_for(over, 10.0)
        assert isinstance(error, dvrt.StageFailed)
        assert error.worker == "worker-1"
