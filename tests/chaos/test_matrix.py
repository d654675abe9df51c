"""Every worker dies at every moment: no token changes, little is computed again, others live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.chaos.inside import Inside
from dvrt.chaos.judge import judge_answers, judge_events
from dvrt.chaos.schedule import Ask
from dvrt.chaos.traffic import Answer, ask
from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.engine import Engine
from dvrt.cluster.topology import Seat
from dvrt.control.sequence import Sequence
from dvrt.stages.replicas import ReplicaActor
from dvrt.virtual import run_virtual
from tests.chaos.moments import MOMENTS, armed

BASE: dict[str, Any] = {
    "device": "null",
    "in_process": True,
    "max_context": 128,
    "null_step_ms": 20.0,
    "batch_size": 2,
    "chunk_tokens": 16,
    "swap": True,
    "swap_bandwidth": "200KB",
}
SHAPES: dict[str, dict[str, Any]] = {
    "3": {"stages": 3},
    "2+2": {"prompt_stages": 2, "token_stages": 2},
    "3 spare": {"stages": 3, "spares": 1, "swap": False, "swap_bandwidth": "0"},
}
ASKS = tuple(Ask(number=number, at_s=0.0) for number in range(12))
"""Greedy and seeded ones, one sample and several, with and without stops."""

CELLS = [
    (shape, phase, worker)
    for shape, options in SHAPES.items()
    for phase in MOMENTS
    for worker in range(4 if "prompt_stages" in options else 3)
]


def can_be(shape: str, phase: str, worker: int) -> bool:
    """Not every worker of every shape does everything."""
    is_split, is_prompt = shape == "2+2", shape == "2+2" and worker < 2
    if phase in ("prompt transfer", "before commit"):
        return is_prompt
    if phase in ("before compute", "after compute", "result sent"):
        return not is_prompt
    if phase == "prompt":
        return is_prompt or not is_split
    if phase == "restore":
        return not is_split or worker in (1, 2)  # whose neighbour has tokens
    if phase in ("swap in", "swap out"):
        return shape != "3 spare" and not (is_prompt and phase == "swap in")
    return True


class Witness:
    """Sees each loss as the scheduler does, and says how much may be computed again at most."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.may_recompute = 0

    def lost(self, dispatcher: Dispatcher, seat: Seat) -> None:
        pipeline = dispatcher._scheduler._fleet[seat.key[0]]
        for sequence in pipeline.sitting():
            held = min(sequence.n_done, self._copied(seat, sequence), len(sequence.tokens) - 1)
            if held < sequence.n_prompt:
                held -= held % pipeline.shape.chunk_tokens
            self.may_recompute += sequence.n_logged - held

    def _copied(self, seat: Seat, sequence: Sequence) -> int:
        """The longest copy of the sequence's log in the memory of those who live."""
        assert self.engine is not None and sequence.seat is not None
        inside = Inside(self.engine)
        shelves = [
            actor._shelves[seat.key]
            for name in inside.living
            for actor in inside.actors(name, ReplicaActor)
            if seat.key in actor._shelves
        ]
        lengths = [
            copy.nbytes // shelf.entry_bytes
            for shelf in shelves
            for copy in shelf.copies.values()
            if copy.seq == sequence.id and shelf.entry_bytes
        ]
        return max(lengths, default=0)


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    seen = Witness()
    before = Dispatcher.stage_lost

    def stage_lost(dispatcher: Dispatcher, seat: Seat) -> None:
        seen.lost(dispatcher, seat)
        before(dispatcher, seat)

    monkeypatch.setattr(Dispatcher, "stage_lost", stage_lost)
    return seen


@pytest.mark.parametrize(
    ("shape", "phase", "worker"), [cell for cell in CELLS if can_be(*cell)], ids=str
)
def test_a_worker_dies_at_a_moment(
    model: Path,
    right: dict[int, Answer],
    witness: Witness,
    shape: str,
    phase: str,
    worker: int,
) -> None:
    name = f"worker-{worker}"
    crews: list[Any] = []
    seen: list[Engine] = []

    async def main() -> None:
        launch = dvrt.launch(model, **{**BASE, **SHAPES[shape]})
        async with launch as engine:
            witness.engine = engine
            seen.append(engine)
            answers = asyncio.gather(*(ask(engine, each, name=f"r{each.number}") for each in ASKS))
            if phase in ("recovery", "restore"):
                neighbour = (worker + 1) % (4 if shape == "2+2" else 3)
                has_prompts = shape == "2+2" and neighbour < 2
                await asyncio.sleep(0.15 if has_prompts else 1.0)
                Inside(engine).kill(f"worker-{neighbour}")
            faults = judge_answers(ASKS, await answers, right)
            assert faults == []
            if phase != "shutdown":
                await check(engine, name, phase, witness)

    def strike() -> None:
        crews[-1].kill(name)

    with crew_known(crews), armed(phase, name, strike) as struck:
        run_virtual(main(), seed=worker)
    assert struck == [name], "the moment did not come"


async def check(engine: Engine, name: str, phase: str, witness: Witness) -> None:
    """The dead are replaced, and nobody else was; no more was computed again than was lost."""
    async with asyncio.timeout(60):
        while not engine.is_healthy():
            await asyncio.sleep(0.05)
    n_dead = 2 if phase in ("recovery", "restore") else 1
    status = engine.status()
    assert status.n_lost == n_dead
    lost = [each.name for each in status.workers if each.state == "lost"]
    assert name in lost or phase == "loading"
    assert judge_events(engine.events()) == []
    assert engine.metrics.value("dvrt_recomputed_tokens") <= witness.may_recompute
    engine._controller.check_integrity()


def crew_known(crews: list[Any]) -> Any:
    """The crew is wanted before the engine is there: a worker may die while it loads."""
    from dvrt.cluster.crew import Crew

    patch = pytest.MonkeyPatch()
    before: Callable[..., None] = Crew.__init__

    def made(self: Crew, *given: Any) -> None:
        crews.append(self)
        before(self, *given)

    class Known:
        def __enter__(self) -> None:
            patch.setattr(Crew, "__init__", made)

        def __exit__(self, *_: object) -> None:
            patch.undo()

    return Known()
