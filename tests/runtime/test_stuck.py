"""A worker that beats and computes for ever is stuck, and replaced like one that has died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dvrt.cluster.engine import Engine
from dvrt.control.steps import Step
from dvrt.models.tiny import write_tiny
from dvrt.protocol.messages import LoadStage
from dvrt.stages import stage as stage_module
from dvrt.stages.step_watch import StepWatch
from tests.attack.traffic import Outcome
from tests.chaos.moments import current_worker
from tests.runtime.crowd import crowd, virtual

FOR_EVER_S = 1e9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("stuck") / "tiny", "gpt2", n_layers=3)


async def served(engine: Engine) -> list[Outcome]:
    return await crowd(engine, range(20))


@pytest.mark.parametrize("name", ["worker-0", "worker-1", "worker-2"])
@pytest.mark.parametrize("swap", [False, True], ids=["", "swap"])
def test_a_stage_that_computes_for_ever_is_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, swap: bool
) -> None:
    right = virtual(model, served, stages=3)
    cost_s: Callable[[LoadStage, Step], float] = stage_module.step_cost_s
    hung: list[int] = []

    def hang_once(order: LoadStage, step: Step) -> float:
        if current_worker() == name and step.id == 12 and not hung:
            hung.append(step.id)
            return FOR_EVER_S
        return cost_s(order, step)

    async def work(engine: Engine) -> list[Outcome]:
        answers = await served(engine)
        lost = [each for each in engine.events() if (each.subject, each.state) == (name, "lost")]
        assert len(lost) == engine.status().n_lost == 1
        assert "nothing was computed for 3 s" in lost[0].reason
        return answers

    monkeypatch.setattr(stage_module, "step_cost_s", hang_once)
    assert virtual(model, work, stages=3, step_limit_s=3.0, swap=swap, swap_anyway=swap) == right
    assert hung


@pytest.mark.virtual
async def test_steps_that_end_are_progress_however_many_wait() -> None:
    stuck: list[float] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    watch = StepWatch(10.0, lambda: stuck.append(loop.time() - began))
    for _ in range(8):
        watch.began()
    for _ in range(7):
        await asyncio.sleep(9.0)
        watch.ended()
    await asyncio.sleep(9.9)
    assert not stuck
    await asyncio.sleep(100.0)
    assert stuck == [pytest.approx(73.0)]
    watch.ended()


@pytest.mark.virtual
async def test_an_idle_stage_is_not_stuck() -> None:
    stuck: list[bool] = []
    watch = StepWatch(10.0, lambda: stuck.append(True))
    watch.began()
    watch.ended()
    await asyncio.sleep(1000.0)
    watch.began()
    await asyncio.sleep(9.0)
    watch.ended()
    none = StepWatch(0.0, lambda: stuck.append(True))
    none.began()
    await asyncio.sleep(1000.0)
    watch.close()
    assert not stuck
