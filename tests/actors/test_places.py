"""Places whose workers never come, come from an earlier life, or are wanted no longer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from dvrt.actors.node import Node
from dvrt.cluster.controller import Controller
from dvrt.cluster.orphans import Orphan
from dvrt.cluster.outlook import Watchfulness
from dvrt.cluster.plan import Split, plan_cluster
from dvrt.config import LaunchOptions
from dvrt.models.tiny import write_tiny
from dvrt.observe.metrics import Metrics
from dvrt.processes.task_nursery import TaskNursery
from dvrt.protocol.claims import HeldStage
from dvrt.protocol.messages import Joined, StageLoaded
from dvrt.requests import Request, SamplingParams
from tests.actors.crew import SECRET, make_node
from tests.actors.puppets import PuppetHost, PuppetReplicas, PuppetStage, Stage, script, staged

pytestmark = [pytest.mark.virtual, pytest.mark.may_block]
EXTERNAL = {"stages": 2, "external_workers": 1, "control_port": 1, "secret": "x"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny", "gpt2", n_layers=5)


async def test_a_replacement_that_never_joins_is_replaced(model: Path) -> None:
    behaviour = {"worker-1.2": "never joins"}
    async with staged(model, stages=2, behaviour=behaviour, start_limit_s=20.0) as stage:
        stage.kill("worker-1")
        await asyncio.sleep(15.0)
        assert stage.controller.state == "recovering"
        await asyncio.sleep(60.0)
        assert stage.controller.state == "serving"


async def test_a_vacancy_of_a_closed_pipeline_is_nobodys_loss(model: Path) -> None:
    async with staged(model, ready=False, start_limit_s=30.0, **EXTERNAL) as stage:
        await stage.spawn("ann")
        await stage.controller.wait_ready()
        request = Request(id="r", prompt_ids=(1, 2), max_tokens=5, sampling=SamplingParams())
        stream = stage.controller.submit(request)
        change = asyncio.create_task(stage.controller.rebalance(Split(token=1)))
        await asyncio.sleep(1.0)
        stage.kill("ann")
        await asyncio.sleep(0.1)
        stage.controller.leave(stream)
        await change
        await asyncio.sleep(60.0)
        assert stage.controller.state == "serving"


class Outlived:
    """A worker of the former life, as its nursery would have it."""

    name = "worker-1"
    exit = None

    async def wait(self) -> None:
        await asyncio.Event().wait()

    def kill(self) -> None:
        pass


@pytest.mark.parametrize("held", [0, 1])
async def test_a_worker_of_the_former_life_takes_whatever_place_it_had(
    model: Path, held: int
) -> None:
    script.behaviour, script.told, script.stages = {}, [], {}
    chosen = LaunchOptions.make(model=str(model), device="null", **EXTERNAL)
    plan = plan_cluster(chosen, model)
    old = Node(name="worker-1", address="local://", secret=SECRET)
    async with make_node("local", "controller") as node, TaskNursery() as nursery, old:
        controller = Controller(plan, Metrics(), Watchfulness.of(chosen))
        me = node.spawn(controller, name="controller")
        controller.open()
        stage = Stage(controller, nursery, str(me), {}, Metrics())
        order = replace(plan.layouts[0].loads[held], controller=str(me))
        host = old.spawn(PuppetHost("worker-1"), name="worker-1")
        copies = old.spawn(PuppetReplicas(), name="replicas")
        actor = old.spawn(PuppetStage("worker-1", order), name=f"p0-s{held}")
        joined = Joined(worker="worker-1", pid=1, host_actor=str(host), replica_actor=str(copies))
        loaded = StageLoaded(
            worker="worker-1",
            actor=str(actor),
            pipeline=0,
            stage=held,
            weights_bytes=0,
            kv_bytes=0,
            load_s=0,
            device="null",
        )
        stages = (HeldStage(order=order, loaded=loaded, logs=()),)
        controller.succession.orphans = (Orphan(joined=joined, worker=Outlived(), stages=stages),)
        crew = controller.start(stage.spawn, n_external=1)
        await asyncio.sleep(1.0)
        await stage.spawn("ann")
        await asyncio.sleep(200.0)
        await crew.aclose()
        state = controller.state
        await node.stop("controller", "over")
        assert state == "serving"
