"""Real processes, killed at a moment of their own work: the text is that of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.chaos.judge import judge_answers, judge_events
from dvrt.chaos.real_run import REAL_KINDS, run_real
from dvrt.chaos.schedule import Ask
from dvrt.chaos.traffic import Answer, ask
from dvrt.cluster.engine import Engine
from dvrt.models.tiny import write_tiny
from dvrt.processes.worker import Worker
from tests.chaos.moments import MOMENTS, armed

ASKS = tuple(Ask(number=number, at_s=0.0) for number in range(8))
SPLIT: dict[str, Any] = {"prompt_stages": 1, "token_stages": 2}
LINE: dict[str, Any] = {"stages": 3}
SWAP: dict[str, Any] = {"stages": 2, "swap": True}
SAMPLE = [
    ("prompt transfer", 0, SPLIT),
    ("after compute", 2, LINE),
    ("swap out", 1, SWAP),
]
AFTER_ANOTHER = ("recovery", "restore")
N_STEPS = 12
CPU = {"device": "cpu", "chunk_tokens": 16, "max_context": 128, "batch_size": 2}
REST = [
    (phase, worker, shape)
    for phase in MOMENTS
    for shape in (LINE, SPLIT, SWAP)
    for worker in range(2 if shape is SWAP else 3)
    if (phase, worker, shape) not in SAMPLE
]


@pytest.fixture(scope="module")
def answers(model: Path) -> dict[int, Answer]:
    """Of the real model, in processes of their own, undisturbed."""

    async def main() -> dict[int, Answer]:
        async with dvrt.launch(model, stages=1, **CPU) as engine:
            got = await asyncio.gather(*(ask(engine, each, name=str(each)) for each in ASKS))
            return {asked.number: answer for asked, answer in zip(ASKS, got, strict=True)}

    return asyncio.run(main())


def can_be(phase: str, worker: int, shape: dict[str, Any]) -> bool:
    is_prompt = shape is SPLIT and worker == 0
    if phase in ("prompt transfer", "before commit"):
        return is_prompt
    if phase in ("before compute", "after compute", "result sent"):
        return not is_prompt
    if phase == "prompt":
        return shape is not SPLIT or is_prompt
    if phase in ("swap in", "swap out"):
        return shape is SWAP
    if phase in AFTER_ANOTHER:
        return neighbour_of(worker, shape) != (0 if shape is SPLIT else -1)  # has tokens to lose
    return True


def neighbour_of(worker: int, shape: dict[str, Any]) -> int:
    return (worker + 1) % (2 if shape is SWAP else 3)


async def kill_neighbour(engine: Engine, worker: int, shape: dict[str, Any]) -> None:
    """In the midst of its work."""
    name = f"worker-{neighbour_of(worker, shape)}"
    while next(each.steps for each in engine.status().workers if each.name == name) < N_STEPS:
        await asyncio.sleep(0.001)
    os.kill(pids(engine)[name], signal.SIGKILL)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("phase", "worker", "shape"),
    [
        *SAMPLE,
        *(
            pytest.param(*cell, marks=[pytest.mark.slow, pytest.mark.chaos])
            for cell in REST
            if can_be(*cell)
        ),
    ],
    ids=str,
)
def test_a_process_dies_at_a_moment(
    model: Path,
    answers: dict[int, Answer],
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    worker: int,
    shape: dict[str, Any],
) -> None:
    name = f"worker-{worker}"
    n_dead = 1 + (phase in AFTER_ANOTHER)
    workers: dict[str, Worker] = {}
    if not MOMENTS[phase].of_controller:
        sabotage(monkeypatch, phase, name, "dies")

    async def main() -> None:
        async with dvrt.launch(model, **{**CPU, **shape}) as engine:
            workers.update(engine._controller._overseer._crew._workers)
            before = pids(engine)
            with armed(phase, name, lambda: os.kill(before[name], signal.SIGKILL)) as struck:
                asking = asyncio.gather(*(ask(engine, each, name=str(each)) for each in ASKS))
                if n_dead == 2:
                    await kill_neighbour(engine, worker, shape)
                got = await asking
            assert judge_answers(ASKS, got, answers) == []
            if phase == "shutdown":
                return
            while not (engine.status().n_lost >= n_dead and engine.is_healthy()):
                await asyncio.sleep(0.01)
            assert engine.status().n_lost == n_dead
            assert struck == ([name] if MOMENTS[phase].of_controller else [])
            assert judge_events(engine.events()) == []
            after = pids(engine)
            survivors = before.keys() & after.keys()
            n_gone_before = phase in ("loading", "loaded")  # and replaced before the start
            assert len(survivors) == len(before) - n_dead + n_gone_before
            assert name not in survivors
            assert all(after[each] == before[each] for each in survivors)

    asyncio.run(asyncio.wait_for(main(), 100))
    if phase == "shutdown":
        end = workers[name].exit
        assert end is not None and end.signal == signal.SIGKILL


def sabotage(monkeypatch: pytest.MonkeyPatch, phase: str, name: str, fault: str) -> None:
    """Have this worker meet a fault of ``saboteur`` at this moment."""
    monkeypatch.setenv("DVRT_TEST_MOMENT", f"{phase}/{name}/{fault}")
    monkeypatch.setattr(
        "dvrt.cluster.launch._preload",
        lambda plan: ["dvrt.stages.assembly", "dvrt.models.runner", "tests.chaos.saboteur"],
    )


def test_a_process_that_hangs_in_a_step_is_replaced_though_it_beats(
    model: Path, answers: dict[int, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, "after compute", "worker-1", "hangs")

    async def main() -> None:
        async with dvrt.launch(model, **CPU, **LINE, step_limit_s=1.0) as engine:
            before = pids(engine)
            got = await asyncio.gather(*(ask(engine, each, name=str(each)) for each in ASKS))
            assert judge_answers(ASKS, got, answers) == []
            assert engine.status().n_lost == 1
            after = pids(engine)
            assert before.keys() - after.keys() == {"worker-1"}
            assert not is_there(before["worker-1"])

    asyncio.run(asyncio.wait_for(main(), 50))


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids(engine: Engine) -> dict[str, int]:
    living = (each for each in engine.status().workers if each.state not in ("lost", "ended"))
    return {each.name: each.pid for each in living}


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=[pytest.mark.slow, pytest.mark.chaos]) for n in range(4)]
)
def test_faults_at_random_in_real_processes(tmp_path: Path, seed: int) -> None:
    model = write_tiny(tmp_path / "tiny", n_layers=3, tokenizer=True)
    values = {"model": str(model), "device": "null", "spares": 1, "max_context": 256, **LINE}
    report = asyncio.run(run_real(values, seed=seed, kinds=REAL_KINDS, duration_s=4.0))
    assert report.faults == []
    assert report.n_whole > 3 and report.injected
