"""Who gets which stage, and what happens when workers are lost, late, deaf or back again."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.cluster.plan import Split
from dvrt.models.tiny import write_tiny
from dvrt.protocol.messages import CloseStage, LoadStage, StopWorker
from tests.actors.puppets import Stage, script, staged

pytestmark = [pytest.mark.virtual, pytest.mark.may_block]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("overseer") / "tiny", "gpt2", n_layers=5)


def address(stage: Stage, name: str, actor: str) -> str:
    member = stage.controller._overseer.roster.get(name)
    assert member is not None
    return f"{member.host.node_address}/{actor}"


async def test_stages_go_in_order_and_know_each_other(model: Path) -> None:
    async with staged(model, stages=3) as stage:
        assert stage.states() == {f"worker-{i}": ("stage", "ready") for i in range(3)}
        (first,), (last,) = script.connects("worker-0/p0-s0"), script.connects("worker-2/p0-s2")
        assert first.next_actor == address(stage, "worker-1", "p0-s1")
        assert first.replicas == (address(stage, "worker-1", "replicas"),)
        assert last.next_actor == stage.address
        assert last.replicas == (address(stage, "worker-0", "replicas"),)
        assert first.targets == ()


async def test_prompt_stages_know_where_tokens_are(model: Path) -> None:
    async with staged(model, prompt_stages=1, token_stages=2, replicas=2) as stage:
        prompt = script.connects("worker-0/p0-s0")[-1]
        (target,) = prompt.targets
        assert target.pipeline == 1
        assert [(each.first, each.stop) for each in target.stages] == [(0, 3), (3, 5)]
        assert [each.actor for each in target.stages] == [
            address(stage, "worker-1", "p1-s0"),
            address(stage, "worker-2", "p1-s1"),
        ]
        token = script.connects("worker-1/p1-s0")[-1]
        assert token.targets == ()
        assert token.replicas == tuple(
            address(stage, w, "replicas") for w in ("worker-2", "worker-0")
        )


async def test_a_lost_stage_comes_back_and_every_stage_confirms_what_it_knows(model: Path) -> None:
    """Also those that are told nothing new: a step from before may still be on its way to them."""
    async with staged(model, stages=4) as stage:
        before = {f"worker-{i}": len(script.connects(f"worker-{i}/p0-s{i}")) for i in range(4)}
        stage.kill("worker-2")
        await stage.until(lambda: stage.controller.state == "recovering")
        assert not stage.controller.is_healthy()
        await stage.serving()
        assert stage.controller.is_healthy()
        assert stage.states()["worker-2.2"] == ("stage", "ready")
        assert stage.states()["worker-2"] == ("stage", "lost")
        left = script.connects("worker-1/p0-s1")
        assert left[-1].next_actor == address(stage, "worker-2.2", "p0-s2")
        assert left[-1].replicas == (address(stage, "worker-2.2", "replicas"),)
        for far in ("worker-0", "worker-3"):
            told = script.connects(f"{far}/p0-s{far[-1]}")
            assert len(told) == before[far] + 1
            assert told[-1] == told[-2]


async def test_a_spare_is_told_at_once_and_another_is_hired(model: Path) -> None:
    async with staged(model, stages=2, spares=1) as stage:
        await stage.until(lambda: stage.states().get("worker-2") == ("spare", "idle"))
        stage.kill("worker-1")
        await stage.until(lambda: stage.states()["worker-1"][1] == "lost")
        assert stage.states()["worker-2"] == ("stage", "loading")
        await stage.serving()
        await stage.until(lambda: ("spare", "idle") in stage.states().values())


async def test_the_second_best_is_taken_when_a_replacement_dies_while_it_loads(model: Path) -> None:
    async with staged(model, stages=2, spares=2) as stage:
        await stage.until(lambda: list(stage.states().values()).count(("spare", "idle")) == 2)
        stage.kill("worker-0")
        await asyncio.sleep(0.1)
        stage.kill("worker-2")
        await stage.serving()
        assert stage.states()["worker-3"] == ("stage", "ready")
        assert stage.controller.status().n_lost == 2


@pytest.mark.parametrize("what", ["loads for ever", "confirms nothing", "fails to load"])
async def test_a_replacement_that_does_not_do_its_part_is_replaced(model: Path, what: str) -> None:
    behaviour = {"worker-1.2": what}
    async with staged(model, stages=2, behaviour=behaviour, start_limit_s=5.0) as stage:
        stage.kill("worker-1")
        await asyncio.sleep(0.1)
        await stage.until(lambda: stage.states().get("worker-1.3") == ("stage", "ready"))
        await stage.serving()
        reasons = [
            each.reason for each in stage.controller.events() if each.subject == "worker-1.2"
        ]
        assert any("did not" in each or "damaged" in each for each in reasons)


async def test_a_start_that_cannot_succeed_is_tried_once(model: Path) -> None:
    behaviour = {"worker-1": "fails to load"}
    async with staged(model, stages=2, behaviour=behaviour, ready=False) as stage:
        with pytest.raises(dvrt.StageFailed, match="worker-1 failed: .*the weights are damaged"):
            await stage.controller.wait_ready()
        assert stage.controller.status().n_lost == 1


async def test_a_death_at_start_is_not_the_end(model: Path) -> None:
    async with staged(model, stages=2, ready=False) as stage:
        await stage.until(lambda: stage.states().get("worker-1") == ("stage", "loading"))
        stage.kill("worker-1")
        await stage.controller.wait_ready()
        assert stage.states()["worker-1.2"] == ("stage", "ready")


async def test_whoever_joins_takes_the_place_that_is_open(model: Path) -> None:
    options = {"stages": 2, "external_workers": 1, "control_port": 1, "secret": "x"}
    async with staged(model, ready=False, **options) as stage:
        await asyncio.sleep(100.0)
        assert stage.states() == {"worker-0": ("stage", "loaded")}
        await stage.spawn("ann")
        await stage.controller.wait_ready()
        assert stage.states()["ann"] == ("stage", "ready")
        await stage.spawn("bo")
        await stage.until(lambda: stage.states().get("bo") == ("spare", "idle"))
        stage.kill("ann")
        await stage.until(lambda: stage.states()["bo"] == ("stage", "ready"))
        stage.kill("bo")
        await asyncio.sleep(100.0)
        assert stage.controller.state == "recovering"
        await stage.spawn("cy")
        await stage.serving()


async def test_who_joins_before_there_are_places_waits_for_them(model: Path) -> None:
    async def join(stage: Stage) -> None:
        await stage.spawn("ann")
        await asyncio.sleep(1.0)
        assert stage.controller.state == "starting"

    options = {"stages": 2, "external_workers": 1, "control_port": 1, "secret": "x"}
    async with staged(model, before=join, **options) as stage:
        assert stage.states() == {"worker-0": ("stage", "ready"), "ann": ("stage", "ready")}


async def test_who_leaves_before_there_are_places_is_waited_for_no_more(model: Path) -> None:
    async def join_and_leave(stage: Stage) -> None:
        await stage.spawn("ann")
        await asyncio.sleep(1.0)
        stage.kill("ann")
        await asyncio.sleep(1.0)

    options = {"stages": 2, "external_workers": 1, "control_port": 1, "secret": "x"}
    async with staged(model, ready=False, before=join_and_leave, **options) as stage:
        await asyncio.sleep(10.0)
        await stage.spawn("bo")
        await stage.controller.wait_ready()
        assert stage.states()["bo"] == ("stage", "ready")


async def test_a_place_that_nobody_takes_ends_the_cluster(model: Path) -> None:
    options = {"stages": 1, "external_workers": 1, "control_port": 1, "secret": "x"}
    async with staged(model, ready=False, start_limit_s=30.0, **options) as stage:
        await stage.spawn("ann")
        await stage.controller.wait_ready()
        stage.kill("ann")
        await asyncio.sleep(29.0)
        assert stage.controller.state == "recovering"
        await asyncio.sleep(2.0)
        assert stage.controller.state == "failed"
        assert "the place of ann" in stage.controller.status().reason


async def test_too_many_losses_are_the_end_and_slow_ones_are_not(model: Path) -> None:
    async with staged(model, stages=2, max_deaths=2) as stage:
        for life in range(6):
            stage.kill(next(n for n, s in stage.states().items() if s == ("stage", "ready")))
            await asyncio.sleep(61.0)
            assert stage.controller.state == "serving", life
        for _ in range(3):
            await stage.serving()
            stage.kill(next(n for n, s in stage.states().items() if s == ("stage", "ready")))
            await asyncio.sleep(1.0)
        assert stage.controller.state == "failed"


async def test_a_change_of_the_split_moves_roles_and_closes_what_was(model: Path) -> None:
    async with staged(model, stages=3) as stage:
        await stage.controller.rebalance(Split(prompt=1, token=1))
        roles = [role for role, _ in stage.states().values()]
        assert roles == ["prompt", "token", "spare"]
        closed = [(m.pipeline, m.stage) for _, m in script.told if isinstance(m, CloseStage)]
        assert sorted(closed) == [(0, 0), (0, 1), (0, 2)]
        assert script.stages == {"worker-0": {(1, 0)}, "worker-1": {(2, 0)}, "worker-2": set()}
        await stage.controller.rebalance(Split(prompt=2, token=2))
        assert script.stages["worker-3"] == {(4, 1)}
        assert [each.id for each in stage.controller.status().pipelines] == [3, 4]


async def test_a_loss_before_the_new_stages_are_ready_undoes_the_change(model: Path) -> None:
    async with staged(model, stages=2) as stage:
        change = asyncio.create_task(stage.controller.rebalance(Split(prompt=1, token=1)))
        await asyncio.sleep(0.1)
        stage.kill("worker-1")
        with pytest.raises(dvrt.StageFailed, match="undone: worker worker-1 was lost"):
            await change
        await stage.serving()
        assert [each.id for each in stage.controller.status().pipelines] == [0]
        assert script.stages["worker-0"] == {(0, 0)}
        await stage.controller.rebalance(Split(prompt=1, token=1))
        assert [each.id for each in stage.controller.status().pipelines] == [3, 4]


async def test_new_stages_that_never_load_undo_the_change(model: Path) -> None:
    behaviour = {"worker-2": "never joins"}
    async with staged(model, stages=2, behaviour=behaviour, start_limit_s=20.0) as stage:
        with pytest.raises(dvrt.StageFailed, match="not ready in 20 s"):
            await stage.controller.rebalance(Split(prompt=2, token=1))
        assert stage.controller.is_healthy()
        await stage.until(lambda: script.stages["worker-0"] == {(0, 0)})
        assert script.stages["worker-1"] == {(0, 1)}


async def test_the_end_is_told_to_all(model: Path) -> None:
    async with staged(model, stages=2, spares=1) as stage:
        await stage.until(lambda: "worker-2" in stage.states())
    stopped = [name for name, message in script.told if isinstance(message, StopWorker)]
    assert sorted(stopped) == ["worker-0", "worker-1", "worker-2"]


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_dies_whenever_all_stages_are_held_in_the_end(
    model: Path, seed: int
) -> None:
    rng = random.Random(seed)
    shapes: list[dict[str, Any]] = [
        {"stages": rng.randint(1, 4)},
        {"prompt_stages": rng.randint(1, 3), "token_stages": rng.randint(1, 3)},
    ]
    options = {**rng.choice(shapes), "spares": rng.randint(0, 2), "max_deaths": 10_000}
    async with staged(model, **options) as stage:
        for _ in range(150):
            await asyncio.sleep(rng.choice((0.0, 0.0, 0.001, 0.01, 0.1, 0.29, 0.31, 1.0)))
            if rng.random() < 0.15:
                split = rng.choice((Split(token=2), Split(prompt=1, token=2), Split(token=4)))
                change = asyncio.create_task(stage.controller.rebalance(split))
                change.add_done_callback(lambda each: each.cancelled() or each.exception())
            if stage.workers:
                stage.kill(rng.choice(list(stage.workers)[-6:]))
        await asyncio.sleep(60.0)
        assert stage.controller.is_healthy()
        held: dict[tuple[int, int], list[str]] = {}
        for name, worker in stage.workers.items():
            for key in script.stages.get(name, set()) if worker.exit is None else ():
                held.setdefault(key, []).append(name)
        status = stage.controller.status()
        keys = {(each.id, i) for each in status.pipelines for i in range(len(each.stages))}
        assert set(held) == keys
        assert all(len(names) == 1 for names in held.values())
        n_spares = sum(
            role == "spare" and state == "idle" for role, state in stage.states().values()
        )
        assert n_spares >= options["spares"]
        n_loads = sum(isinstance(message, LoadStage) for _, message in script.told)
        assert n_loads < 3000
