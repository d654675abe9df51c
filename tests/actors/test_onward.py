"""What may leave a stage early, and what must wait for the loop, be dropped, or stay."""

from __future__ import annotations

from typing import Any

import pytest

from dvrt.actors.compute import Done
from dvrt.actors.executor import Executed
from dvrt.actors.messages import Forward
from dvrt.actors.onward import Errand, Onward
from dvrt.control.steps import Step, StepDone
from dvrt.errors import ActorGone, ProtocolError


class Target:
    """Stands in for a reference; ``is_open`` says whether a thread may send to it."""

    def __init__(self) -> None:
        self.is_open = True
        self.early: list[int] = []
        self.late: list[int] = []
        self.last: object = None

    def try_tell(self, message: Forward | StepDone, *regions: Any) -> bool:
        if self.is_open:
            self._note(message, self.early)
        return self.is_open

    def tell_nowait(self, message: Forward | StepDone, *regions: Any) -> None:
        if not self.is_open:
            raise ActorGone("it is gone")
        self._note(message, self.late)

    def _note(self, message: Forward | StepDone, to: list[int]) -> None:
        self.last = message
        to.append(message.step.id if isinstance(message, Forward) else message.id)


DONE = Done(value=Executed(), began=1.0, busy_s=2.0)
NOTHING: Done[Executed | None] = Done(value=None, began=1.0, busy_s=0.0)


def onward(*, is_last: bool = False) -> tuple[Onward, Any]:
    made, target = Onward("p0-s0", is_last=is_last), Target()
    made.connect(target)  # type: ignore[arg-type]
    return made, target


def forward(number: int) -> Forward:
    return Forward(step=Step(id=number, microbatch=0), spans=((0.0, 0.5),))


def carry(way: Onward, errand: Errand) -> None:
    way.send_early(errand, DONE)
    way.send(errand, DONE)
    way.passed()


def test_a_result_leaves_once_with_its_span() -> None:
    way, target = onward()
    carry(way, way.accept(forward(1)))
    assert (target.early, target.late, way.n_waiting) == ([1], [], 0)
    assert target.last == Forward(step=Step(id=1, microbatch=0), spans=((0.0, 0.5), (1.0, 2.0)))
    way, target = onward(is_last=True)
    way.send_early(way.accept(forward(1)), DONE)
    assert target.last == StepDone(id=1, microbatch=0, spans=((0.0, 0.5), (1.0, 2.0)))


def test_no_result_overtakes_one_that_waits_for_the_loop() -> None:
    way, target = onward()
    first, second = way.accept(forward(1)), way.accept(forward(2))
    target.is_open = False
    way.send_early(first, DONE)
    target.is_open = True
    way.send_early(second, DONE)
    for errand in (first, second):
        way.send(errand, DONE)
        way.passed()
    assert (target.early, target.late) == ([], [1, 2])


def test_a_step_that_waits_for_the_device_is_not_kept_from_it() -> None:
    way, target = onward()
    for errand in [way.accept(forward(number)) for number in (1, 2)]:
        carry(way, errand)
    assert (target.late, target.early) == ([1], [2])


def test_nothing_leaves_a_way_that_is_cut_or_a_step_that_is_void() -> None:
    way, target = onward()
    assert way.cut() and not way.cut()
    carry(way, way.accept(forward(1)))
    void = way.accept(forward(2))
    way.rewind(3)
    way.rewind(2)
    way.connect(target)
    carry(way, void)
    carry(way, way.accept(forward(3)))
    way.send_early(way.accept(forward(4)), NOTHING)
    assert (target.early, target.late) == ([3], [])


def test_errors_are_the_loops() -> None:
    way, target = onward()
    errand = way.accept(forward(1))
    target.is_open = False
    way.send_early(errand, DONE)
    with pytest.raises(ActorGone):
        way.send(errand, DONE)
    lost = Onward("p0-s0", is_last=False)
    errand = lost.accept(forward(1))
    lost.send_early(errand, DONE)
    with pytest.raises(ProtocolError):
        lost.send(errand, DONE)
