"""A simulated cluster as a Chrome trace: what each stage computed when."""

from __future__ import annotations

from dvrt.observe.trace import Tracer
from dvrt.simulator.deployment import PROMPTS
from dvrt.simulator.line import Flight, Line


def record_spans(tracer: Tracer, cluster: int, line: Line, flight: Flight) -> None:
    """A step that has left the last stage, on all stages."""
    step = flight.step
    role = "prompts" if line.key == PROMPTS else "tokens"
    kinds = [f"{len(step.chunks)}p"] * bool(step.chunks) + [f"{flight.n_decodes}t"] * bool(
        flight.n_decodes
    )
    for stage, (start_s, end_s) in enumerate(zip(flight.starts, flight.ends, strict=True)):
        tracer.complete(
            f"mb{step.microbatch} {'+'.join(kinds)}",
            process=f"cluster {cluster}",
            lane=f"{role} {stage}",
            start_s=start_s,
            duration_s=end_s - start_s,
            arguments={"step": step.id, "repetition": flight.skipped},
        )
