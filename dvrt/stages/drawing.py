"""Drawing tokens at the last stage: what each slot's sampler needs to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dvrt.control.steps import DrawFailed
from dvrt.errors import DvrtError
from dvrt.requests import SampledToken, SamplingParams

Draw = Callable[[Any, SamplingParams, int, int, Sequence[int]], SampledToken]
"""(logits of one position, params, sample, position of the new token, context ids) -> token."""


@dataclass(slots=True)
class _Drawing:
    """``context`` is kept only where a penalty looks at it."""

    sampling: SamplingParams
    sample: int
    context: list[int]

    @property
    def needs_context(self) -> bool:
        return self.sampling.repetition_penalty != 1.0


class Drawings:
    """The samplers by slot; does nothing where ``draw`` is None."""

    def __init__(self, draw: Draw | None) -> None:
        self._draw = draw
        self._slots: dict[int, _Drawing] = {}

    def begin(
        self, slot: int, sampling: SamplingParams, sample: int, context: Sequence[int] = ()
    ) -> None:
        """Another sample's tokens are drawn in this slot from now on."""
        if self._draw is not None:
            self._slots[slot] = _Drawing(sampling, sample, list(context))

    def remember(self, slot: int, tokens: Sequence[int]) -> None:
        """These tokens are in the log now."""
        drawing = self._slots.get(slot)
        if drawing is not None and drawing.needs_context:
            drawing.context.extend(tokens)

    def draw(
        self, slot: int, position: int, logits: Any, sample: int | None = None
    ) -> SampledToken | DrawFailed:
        """The token at ``position``, of the slot's sample or of another one of its request."""
        assert self._draw is not None
        drawing = self._slots[slot]
        chosen = drawing.sample if sample is None else sample
        try:
            return self._draw(logits, drawing.sampling, chosen, position, drawing.context)
        except DvrtError as error:  # non-finite logits: this row's fault, not the step's
            return DrawFailed(reason=str(error))
