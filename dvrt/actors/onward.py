"""The way on from a stage: where its results go, in the order of its steps.

A result that no other step waits behind leaves on the compute thread, the moment it is there, when
that takes no waiting; any other on the event loop. Knows neither models nor logs.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass

from dvrt.actors.compute import Done
from dvrt.actors.executor import Executed
from dvrt.actors.messages import Forward
from dvrt.actors.ref import ActorRef
from dvrt.buffers import Region
from dvrt.control.steps import Step, StepDone
from dvrt.errors import DvrtError, ProtocolError


@dataclass(slots=True, eq=False)
class Errand:
    """A step that a stage has accepted; ``has_left`` once its result is on its way."""

    forward: Forward
    has_left: bool = False


class Onward:
    """Belongs to the loop, ``send_early`` apart.

    ``gate`` is held while a result leaves early and while it changes what may leave and where to:
    so nothing of a time before a loss leaves after the loss is known.
    """

    def __init__(self, name: str, *, is_last: bool) -> None:
        self._name, self._is_last = name, is_last
        self._gate = threading.Lock()
        self.target: ActorRef | None = None
        self._is_cut = False
        self._below = 0
        self._accepted = self._passed = 0

    @property
    def n_waiting(self) -> int:
        """Steps that were accepted and are not passed on yet."""
        return self._accepted - self._passed

    def accept(self, forward: Forward) -> Errand:
        """A step whose result will be passed on; in the order of these calls."""
        self._accepted += 1
        return Errand(forward)

    def connect(self, target: ActorRef) -> None:
        """Results go there from now on."""
        with self._gate:
            self.target, self._is_cut = target, False

    def rewind(self, below: int) -> None:
        """Results of older steps are dropped."""
        with self._gate:
            self._below = max(self._below, below)

    def cut(self) -> bool:
        """Nothing leaves until the next ``connect``; whether that is news."""
        with self._gate:
            was_cut, self._is_cut = self._is_cut, True
        return not was_cut

    def is_void(self, step: Step) -> bool:
        return step.id < self._below

    def send_early(self, errand: Errand, done: Done[Executed | None]) -> None:
        """On the compute thread: send the result, if that takes no waiting.

        Not while a result before it waits for the loop, nor while a step behind it waits for the
        device, which would be kept from it.
        """
        with self._gate, suppress(DvrtError):  # what is wrong with it, the loop finds as well
            if self.n_waiting == 1 and self._may_leave(errand.forward.step, done):
                message, regions = self._result(errand.forward, done)
                errand.has_left = self._to().try_tell(message, *regions)

    def send(self, errand: Errand, done: Done[Executed | None]) -> None:
        """On the loop: send the result if it has not left and may. Raises as ``tell_nowait``."""
        if not errand.has_left and self._may_leave(errand.forward.step, done):
            message, regions = self._result(errand.forward, done)
            self._to().tell_nowait(message, *regions)

    def passed(self) -> None:
        """The oldest errand is over, whatever became of it."""
        self._passed += 1

    def _may_leave(self, step: Step, done: Done[Executed | None]) -> bool:
        return done.value is not None and not self._is_cut and not self.is_void(step)

    def _to(self) -> ActorRef:
        if self.target is None:
            raise ProtocolError(f"{self._name} has no next stage yet")
        return self.target

    def _result(
        self, forward: Forward, done: Done[Executed | None]
    ) -> tuple[Forward | StepDone, list[Region]]:
        """What goes on: the step with its hidden states, or what the last stage has drawn."""
        executed, step = done.value, forward.step
        assert executed is not None
        spans = (*forward.spans, (done.began, done.busy_s))
        if not self._is_last:
            regions = [Region.of(hidden) for hidden in executed.hidden]
            return Forward(step=step, spans=spans), regions
        result = StepDone(
            id=step.id,
            microbatch=step.microbatch,
            pipeline=step.pipeline,
            decoded=executed.decoded,
            firsts=executed.firsts,
            spans=spans,
        )
        return result, []
