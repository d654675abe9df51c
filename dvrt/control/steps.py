"""A step: what one pass through the pipeline does to the logs of one microbatch, as messages.

Steps travel first in, first out through all stages, so every stage applies the same operations
in the same order: ``scrubs`` (slots whose memory is zeroed), ``opens``, ``forks``, then the
``decodes`` and the ``chunks``.
A slot is ``microbatch * batch_size + row``.
"""

from __future__ import annotations

from dvrt.requests import SampledToken, SamplingParams
from dvrt.wire import message


@message("step.open")
class Open:
    """Slot ``slot`` begins the log of a sequence: sample ``sample`` of some request."""

    slot: int
    seq: int
    epoch: int
    sample: int
    sampling: SamplingParams


@message("step.fork")
class Fork:
    """Slot ``target`` takes over the first ``n_tokens`` entries of slot ``source``.

    ``context_ids`` are the tokens of those entries when the sampler needs them, else empty.
    """

    source: int
    target: int
    n_tokens: int
    seq: int
    epoch: int
    sample: int
    sampling: SamplingParams
    context_ids: tuple[int, ...] = ()


@message("step.decode")
class Decode:
    """Extend a log by one known token at ``position``; draw the next token if ``draw``."""

    slot: int
    seq: int
    epoch: int
    position: int
    token: int
    draw: bool = True


@message("step.chunk")
class Chunk:
    """Extend a log by prompt tokens from ``start``, then draw a first token for each ``draws``."""

    slot: int
    seq: int
    epoch: int
    start: int
    tokens: tuple[int, ...]
    draws: tuple[int, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


@message("step")
class Step:
    """One pass of one microbatch through a pipeline."""

    id: int
    microbatch: int
    scrubs: tuple[int, ...] = ()
    opens: tuple[Open, ...] = ()
    forks: tuple[Fork, ...] = ()
    decodes: tuple[Decode, ...] = ()
    chunks: tuple[Chunk, ...] = ()


@message("step.draw_failed")
class DrawFailed:
    """The logits of a row could not be drawn from."""

    reason: str


@message("step.done")
class StepDone:
    """The end of a step, from the last stage.

    ``decoded`` has one item for each decode that draws, ``firsts`` one tuple for each chunk that
    draws, both in the step's order. ``spans`` are (begin, seconds) of the compute of each stage,
    by the monotonic clock of its host.
    """

    id: int
    microbatch: int
    decoded: tuple[SampledToken | DrawFailed, ...] = ()
    firsts: tuple[tuple[SampledToken | DrawFailed, ...], ...] = ()
    spans: tuple[tuple[float, float], ...] = ()
