"""Stages that a spare has made ahead are those that it gets, and the others are let go of."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dvrt.models import prepared as prepared_module
from dvrt.models.prepared import Prepared, small
from dvrt.models.runner import StageRunner
from dvrt.models.spec import StageSpec
from dvrt.models.tiny import write_tiny
from dvrt.protocol.messages import LoadStage
from dvrt.stages.assembly import make_executor, prepare


@pytest.fixture
def orders(tmp_path: Path) -> list[LoadStage]:
    """Two stages of two layers."""
    directory = str(write_tiny(tmp_path / "model", "gpt2", n_layers=4))
    return [
        LoadStage(
            controller="local://c/controller",
            pipeline=0,
            stage=stage,
            n_stages=2,
            spec=StageSpec(
                directory=directory,
                first=2 * stage,
                stop=2 * stage + 2,
                n_layers=4,
                dtype="float32",
                n_microbatches=3,
                batch_size=4,
                max_context=32,
            ),
            vocab_size=256,
            null_step_s=0.0,
        )
        for stage in range(2)
    ]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[StageRunner]]:
    """Every runner from here on."""
    found: list[weakref.ref[StageRunner]] = []
    make: Callable[..., None] = StageRunner.__init__

    def init(self: StageRunner, *args: object, **options: object) -> None:
        make(self, *args, **options)
        found.append(weakref.ref(self))

    monkeypatch.setattr(StageRunner, "__init__", init)
    return found


def never() -> bool:
    return False


@pytest.mark.parametrize("stage", [0, 1])
def test_whichever_stage_it_gets_is_there(
    orders: list[LoadStage], made: list[weakref.ref[StageRunner]], stage: int
) -> None:
    ready, order = Prepared(), orders[stage]
    prepare([*orders, *orders], never, prepared=ready)
    assert [each() is not None for each in made] == [True, True]
    executor = make_executor(order, prepared=ready)
    assert len(made) == 2 and executor.model is made[stage]()
    assert made[stage]().spec == order.spec
    gc.collect()
    assert made[1 - stage]() is None
    assert ready.held.nbytes == 0
    fresh = make_executor(order, prepared=Prepared()).model
    inputs = torch.linspace(-1, 1, 4 * made[stage]().hidden_size).view(4, 1, -1)
    outputs = [
        model.decode(2, [0] * 4, inputs if stage else [1, 2, 3, 4])
        for model in (executor.model, fresh)
    ]
    assert torch.equal(*outputs)
    assert executor.model.kv_bytes == fresh.kv_bytes


def test_another_split_is_made_of_what_is_held(
    orders: list[LoadStage], made: list[weakref.ref[StageRunner]]
) -> None:
    ready = Prepared()
    prepare(orders[:1], never, prepared=ready)
    executor = make_executor(orders[1], prepared=ready)
    assert executor.model is made[1]()


def test_what_comes_too_late_is_not_kept(
    orders: list[LoadStage], made: list[weakref.ref[StageRunner]]
) -> None:
    ready = Prepared()
    make_executor(orders[0], prepared=ready)
    prepare(orders, never, prepared=ready)
    gc.collect()
    assert ready.held.nbytes == 0
    assert [each() for each in made if each() is not None] == []
    spec = orders[0].spec
    ready.put(StageRunner(small(spec)), spec)
    assert ready.take(spec) is None


def test_what_is_there_is_not_wanted_again(orders: list[LoadStage]) -> None:
    ready, spec = Prepared(), orders[0].spec
    assert ready.wants(spec)
    ready.put(StageRunner(small(spec)), spec)
    assert not ready.wants(spec) and ready.wants(orders[1].spec)
    assert not ready.wants(replace(orders[1].spec, device="cuda"))


def test_a_stage_that_swaps_has_the_rows_of_its_device(
    orders: list[LoadStage], made: list[weakref.ref[StageRunner]]
) -> None:
    spec = replace(orders[0].spec, device_slots=2)
    ready, order = Prepared(), replace(orders[0], spec=spec)
    prepare([order], never, prepared=ready)
    model = make_executor(order, prepared=ready).model
    assert len(made) == 1
    assert model.kv_bytes == make_executor(order, prepared=Prepared()).model.kv_bytes


def test_what_is_released_is_gone_without_the_collector(orders: list[LoadStage]) -> None:
    gc.disable()
    try:
        runner = StageRunner(orders[0].spec)
        kept = [*runner._forward.model.parameters(), *runner._forward.model.buffers()]
        known = [weakref.ref(each) for each in (*kept, runner.arena.storage, runner.arena.keys)]
        assert len(known) > 20 and runner.kv_bytes
        del kept
        runner.release()
        assert [each() for each in known if each() is not None] == []
        assert runner.kv_bytes == 0
    finally:
        gc.enable()


def test_without_memory_for_them_only_weights_are_held(
    orders: list[LoadStage],
    made: list[weakref.ref[StageRunner]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = Prepared()
    monkeypatch.setattr(prepared_module, "available_bytes", lambda: 0)
    prepare(orders, never, prepared=ready)
    assert made == [] and ready.held.nbytes > 0


def test_it_ends_when_it_is_told_to(
    orders: list[LoadStage], made: list[weakref.ref[StageRunner]]
) -> None:
    ready = Prepared()
    prepare(orders, lambda: bool(made), prepared=ready)
    assert len(made) == 1
