"""Stages that are whole, but for their KV cache, before it is known which one is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dvrt.models.held_weights import MOST_OF_AVAILABLE, HeldWeights
from dvrt.models.read_ahead import available_bytes
from dvrt.models.spec import StageSpec

if TYPE_CHECKING:
    from dvrt.models.runner import StageRunner

WIDENED = 2
"""How much larger a runner's own weights are, at most, where the files have another type."""


class Prepared:
    """A checkpoint's weights, and runners made of them, until one is taken.

    Runners share weights of the type that the files have, and have room for one microbatch each.
    One thread may put while another takes: what is not there yet is made by whoever needs it.
    """

    def __init__(self) -> None:
        self.held = HeldWeights()
        self._runners: dict[StageSpec, StageRunner] = {}
        self._is_over = False

    def wants(self, spec: StageSpec) -> bool:
        """Whether a runner for this stage should be made and put here, as memory stands."""
        if self._is_over or spec.device != "cpu" or spec in self._runners:
            return False
        return WIDENED * self.held.nbytes <= MOST_OF_AVAILABLE * available_bytes()

    def put(self, runner: StageRunner, spec: StageSpec) -> None:
        """Keep what ``small(spec)`` asks for; it has computed nothing that is wanted."""
        self._runners[spec] = runner
        if self._is_over:
            self._clear()

    def take(self, spec: StageSpec) -> StageRunner | None:
        """The runner for ``spec``, None if it is not there; all others are let go of. Raises
        ModelError where there is no memory for its KV cache."""
        self._is_over = True
        runner = self._runners.pop(spec, None)
        self._clear()
        if runner is not None:
            runner.reserve(spec.on_device().n_microbatches)
        return runner

    def drop(self) -> None:
        """Let go of all that is left, and keep nothing more."""
        self._is_over = True
        self._clear()
        self.held.drop()

    def _clear(self) -> None:
        for spec in list(self._runners):
            runner = self._runners.pop(spec, None)
            if runner is not None:  # else the other thread has just done it
                runner.release()


def small(spec: StageSpec) -> StageSpec:
    """The stage with one microbatch."""
    return replace(spec, n_microbatches=1, device_slots=0)
