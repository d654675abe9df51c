"""Controllers are killed at any moment and followed by others, in virtual time.

Their workers are tasks of the same loop that outlive them; a copy of the journal, taken at the
moment of the kill, is what a killed controller leaves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import dvrt
import dvrt.cluster.launch
from dvrt.cluster.controller import Controller
from dvrt.cluster.engine import Engine
from dvrt.errors import StageFailed
from dvrt.models.tiny import write_tiny
from dvrt.processes.task_nursery import TaskNursery, TaskWorker
from dvrt.virtual import run_virtual
from tests.runtime.crowd import BRISK, at_rest
from tests.runtime.test_controller_restart import SHAPES, Client, Text, copy_journal, live, wishes

GRACE_S = 5.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("orphans") / "tiny", "gpt2", n_layers=3)


@pytest.fixture(scope="module")
def right(model: Path) -> dict[str, Text]:
    clients = [Client(*item) for item in wishes().items()]

    async def work(engine: Engine) -> None:
        await asyncio.gather(*(client.ask(engine) for client in clients))

    live(model, work, 0, stages=1)
    return {client.name: client.text for client in clients}


class Outlived(TaskNursery):
    """Its workers are there for the nursery of the next life, unless it closes in order."""

    everybody: dict[str, TaskWorker]
    is_killed = False

    async def spawn(self, target: str, arguments: object, **options: Any) -> TaskWorker:
        worker = await super().spawn(target, arguments, **options)
        self.everybody[worker.name] = worker
        return worker

    async def adopt(self, name: str, pid: int, started: int) -> TaskWorker:
        worker = self.everybody[name]
        if worker.exit is not None:
            raise StageFailed(name, "it has ended")
        self._workers.append(worker)
        return worker

    async def aclose(self, *, limit_s: float = 5.0) -> None:
        if not self.is_killed:
            await super().aclose(limit_s=limit_s)


class Town:
    """Lives of one controller after another, and the workers that they share."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Path, directory: Path) -> None:
        self._model, self._directory = model, directory
        self.everybody: dict[str, TaskWorker] = {}
        self._n_lives = 0
        self._nursery: Outlived
        self._controller: Controller
        monkeypatch.setattr(dvrt.cluster.launch, "_nursery", lambda *_: self._make_nursery())
        monkeypatch.setattr(dvrt.cluster.launch, "Controller", self._make_controller)

    def _make_nursery(self) -> Outlived:
        self._nursery = Outlived()
        self._nursery.everybody = self.everybody
        return self._nursery

    def _make_controller(self, *args: Any, **options: Any) -> Controller:
        self._controller = Controller(*args, **options)
        return self._controller

    @property
    def living(self) -> list[str]:
        return sorted(name for name, worker in self.everybody.items() if worker.exit is None)

    @asynccontextmanager
    async def life(self, **options: Any) -> AsyncIterator[Engine]:
        journal = self._directory / f"life-{self._n_lives}.db"
        chosen = {**BRISK, "orphan_grace": GRACE_S, "journal": str(journal), **options}
        async with dvrt.launch(self._model, device="null", in_process=True, **chosen) as engine:
            yield engine

    async def kill(self) -> None:
        """As if the controller's process were killed, now; its workers may come to know of it."""
        former = self._directory / f"life-{self._n_lives}.db"
        self._n_lives += 1
        copy_journal(former, self._directory / f"life-{self._n_lives}.db")
        self._nursery.is_killed = True
        self._controller.node.abort()
        await self._controller.on_stop("it is killed")

    async def begin_and_kill(self, after_s: float, **options: Any) -> None:
        """A life that ends so long after its controller has come to be."""

        async def begin() -> None:
            async with self.life(**options):
                await asyncio.Event().wait()

        former = self._controller
        beginning = asyncio.create_task(begin())
        while self._controller is former or not hasattr(self._controller, "node"):
            await asyncio.sleep(0)
        await asyncio.sleep(after_s)
        await self.kill()
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)


class Reader(Client):
    """One that forgets what came behind the kill of the controller that it reads from."""

    def snapshot(self) -> dict[int, list[Any]]:
        return {sample: list(said) for sample, said in self.seen.items()}


async def read_until_killed(
    town: Town, engine: Engine, readers: list[Reader], after_s: float, *victims: str
) -> None:
    task = asyncio.gather(*(reader.resume(engine) for reader in readers))
    await asyncio.wait([task], timeout=after_s)
    said = [reader.snapshot() for reader in readers]
    for name in victims:
        town.everybody[name].kill()
    await town.kill()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for reader, seen in zip(readers, said, strict=True):
        reader.seen = seen


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_whenever_it_is_killed_the_same_workers_finish_every_text(
    model: Path,
    right: dict[str, Text],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: dict[str, Any],
    seed: int,
) -> None:
    rng = random.Random(seed)
    readers = [Reader(*item) for item in wishes().items()]

    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        for _ in range(4):
            async with town.life(**shape) as engine:
                await read_until_killed(town, engine, readers, rng.uniform(0.05, 1.0))
            await asyncio.sleep(rng.uniform(0.0, GRACE_S / 2))
        async with town.life(**shape) as engine:
            assert any(record.state == "adopted" for record in engine.events())
            await asyncio.gather(*(reader.resume(engine) for reader in readers))
            await at_rest(engine)
            assert len(town.everybody) == len(town.living) == sum(shape.values())
        assert town.living == []

    run_virtual(main(), seed=seed)
    assert {reader.name: reader.text for reader in readers} == right


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_workers_may_die_with_it(
    model: Path,
    right: dict[str, Text],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: dict[str, Any],
    seed: int,
) -> None:
    """At once with it, while they wait, or while the next life comes to be."""
    rng = random.Random(seed)
    readers = [Reader(*item) for item in wishes().items()]

    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        for _ in range(4):
            async with town.life(**shape) as engine:
                victims = [name for name in town.living if rng.random() < 0.3]
                await read_until_killed(town, engine, readers, rng.uniform(0.05, 1.0), *victims)
            await asyncio.sleep(rng.uniform(0.0, GRACE_S / 2))
            for name in [name for name in town.living if rng.random() < 0.2]:
                asyncio.get_running_loop().call_later(
                    rng.uniform(0.0, 0.5), town.everybody[name].kill
                )
        async with town.life(**shape) as engine:
            await asyncio.gather(*(reader.resume(engine) for reader in readers))
            await at_rest(engine)
        assert town.living == []

    run_virtual(main(), seed=seed)
    assert {reader.name: reader.text for reader in readers} == right


@pytest.mark.parametrize("seed", range(6))
def test_the_next_one_may_be_killed_while_it_begins(
    model: Path,
    right: dict[str, Text],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    rng = random.Random(seed)
    readers = [Reader(*item) for item in wishes().items()]

    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        async with town.life(stages=3) as engine:
            await read_until_killed(town, engine, readers, 0.5)
        for _ in range(5):
            await town.begin_and_kill(rng.uniform(0.0, 0.05), stages=3)
        async with town.life(stages=3) as engine:
            await asyncio.gather(*(reader.resume(engine) for reader in readers))
            await at_rest(engine)
        await asyncio.sleep(GRACE_S + 1)
        assert town.living == []

    run_virtual(main(), seed=seed)
    assert {reader.name: reader.text for reader in readers} == right


def test_grace_ends(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        async with town.life(stages=2, spares=1) as engine:
            await town.kill()
        await asyncio.sleep(GRACE_S - 0.1)
        assert len(town.living) == 3
        await asyncio.sleep(0.2)
        assert town.living == []
        async with town.life(stages=2, spares=1) as engine:
            assert not any(record.state == "adopted" for record in engine.events())
            assert engine.status().state == "serving"

    run_virtual(main())


def test_a_spare_is_a_spare_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        async with town.life(stages=2, spares=1) as engine:
            await asyncio.sleep(1.0)
            await town.kill()
        async with town.life(stages=2, spares=1) as engine:
            await asyncio.sleep(1.0)
            roles = {each.name: (each.role, each.state) for each in engine.status().workers}
            assert roles == {
                "worker-0": ("stage", "ready"),
                "worker-1": ("stage", "ready"),
                "worker-2": ("spare", "idle"),
            }
        assert len(town.everybody) == 3

    run_virtual(main())


@pytest.mark.parametrize("options", [{"stages": 3}, {"stages": 2, "lease_s": 9.0}], ids=str)
def test_those_who_do_not_fit_are_told_to_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        async with town.life(stages=2) as engine:
            await town.kill()
        former = set(town.living)
        async with town.life(**options) as engine:
            await asyncio.sleep(0.5)
            assert not former & set(town.living)
            assert len(town.living) == options["stages"]
            assert engine.status().state == "serving"

    run_virtual(main())


def test_an_ordered_end_leaves_nobody_to_be_claimed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        async with town.life(stages=2):
            pass
        assert town.living == []
        began = asyncio.get_running_loop().time()
        async with town.life(stages=2) as engine:
            assert asyncio.get_running_loop().time() - began < 1.0
            assert not any(record.state == "adopted" for record in engine.events())

    run_virtual(main())


def test_one_that_answers_too_late_is_told_to_end(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stage computes a step for longer than a claim waits; another is hired in its place."""

    async def main() -> None:
        town = Town(monkeypatch, model, tmp_path)
        options = {"stages": 2, "null_step_ms": 25_000.0, "orphan_grace": 60.0}
        client = Reader("late", {"prompt": [1, 2, 3], "max_tokens": 9, "ignore_eos": True})
        async with town.life(**options) as engine:
            await read_until_killed(town, engine, [client], 2.5)
        async with town.life(**options) as engine:
            await asyncio.sleep(300.0)
            known = [each.name for each in engine.status().workers if each.state == "ready"]
            assert town.living == sorted(known)

    run_virtual(main())
