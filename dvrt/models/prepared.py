"""Stages that are whole before it is known which of them this process will have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvrt.models.held_weights import MOST_OF_AVAILABLE, HeldWeights
from dvrt.models.read_ahead import available_bytes
from dvrt.models.spec import StageSpec

if TYPE_CHECKING:
    from dvrt.models.runner import StageRunner


class Prepared:
    """A checkpoint's weights, and runners that share them, until one is taken.

    One thread may put while another takes: what is not there yet is made by whoever needs it.
    """

    def __init__(self) -> None:
        self.held = HeldWeights()
        self._runners: dict[StageSpec, StageRunner] = {}
        self._is_over = False

    @property
    def has_room(self) -> bool:
        """Whether another one may be made: what a runner adds to the weights is less than they."""
        return not self._is_over and self.held.nbytes <= MOST_OF_AVAILABLE * available_bytes()

    def put(self, runner: StageRunner, spec: StageSpec) -> None:
        """Keep a runner for ``spec`` that has computed nothing yet."""
        self._runners[spec] = runner
        if self._is_over:
            self._runners.clear()

    def take(self, spec: StageSpec) -> StageRunner | None:
        """The runner for ``spec``, None if it is not there; all others are let go of."""
        self._is_over = True
        runner = self._runners.pop(spec, None)
        self._runners.clear()
        return runner

    def drop(self) -> None:
        """Let go of all that is left, and keep nothing more."""
        self._is_over = True
        self._runners.clear()
        self.held.drop()
