"""Whether a cluster is healthy: also one that has all its stages and gets no step back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dvrt.cluster.controller import STALL_LIMIT_S
from dvrt.control.steps import StepDone
from dvrt.models.tiny import write_tiny
from dvrt.protocol.messages import Forward
from dvrt.requests import Request, SampledToken, SamplingParams
from dvrt.wire import decode
from tests.actors.puppets import Stage, script, staged

pytestmark = [pytest.mark.virtual, pytest.mark.may_block]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("health") / "tiny", "gpt2", n_layers=2)


async def answer(stage: Stage) -> None:
    """Send the answer to the newest step that the first stage was told, which draws one token."""
    step = decode([m.step for _, m in script.told if isinstance(m, Forward)][-1])
    drawn = SampledToken(id=1)
    done = StepDone(
        id=step.id,
        microbatch=step.microbatch,
        decoded=(drawn,) * len(step.decodes),
        firsts=((drawn,),) * len(step.chunks),
    )
    await stage.controller.receive(done, None)


async def test_a_step_that_does_not_come_back_is_no_progress(model: Path) -> None:
    """Puppets answer no step, and all the while they beat."""
    async with staged(model, stages=2) as stage:
        controller = stage.controller
        await asyncio.sleep(2 * STALL_LIMIT_S)
        assert controller.is_healthy(), "nothing is in flight"
        stream = controller.submit(
            Request(id="a", prompt_ids=(1, 2), max_tokens=3, sampling=SamplingParams())
        )
        await asyncio.sleep(STALL_LIMIT_S - 1)
        assert controller.is_healthy()
        await asyncio.sleep(2)
        assert controller.state == "serving"
        assert not controller.is_healthy()
        await answer(stage)
        assert controller.is_healthy(), "the next step has just left"
        await asyncio.sleep(STALL_LIMIT_S + 1)
        assert not controller.is_healthy()
        controller.leave(stream)
        assert not controller.is_healthy(), "the step is still in flight"
        await answer(stage)
        assert controller.is_healthy()
