"""How long a step takes on the null device; on real ones it takes what it takes."""

from __future__ import annotations

from dvrt.control.steps import Step
from dvrt.protocol.messages import LoadStage


def step_cost_s(order: LoadStage, step: Step) -> float:
    """Seconds that this stage is occupied with a step, by its order; 0 on a real device."""
    if order.timing is None:
        return order.null_step_s
    seconds = order.timing.decode_step_s([item.position for item in step.decodes])
    return seconds + sum(
        order.timing.chunk_step_s(chunk.start, len(chunk.tokens)) for chunk in step.chunks
    )
