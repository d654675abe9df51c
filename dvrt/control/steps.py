"""A step: what one pass through the pipeline does to the logs of one microbatch, as messages.

Steps travel first in, first out through all stages, so every stage applies the same operations
in the same order: ``scrubs`` (slots whose memory is zeroed), ``opens``, ``adopts``, ``forks``,
``ships``, then the ``decodes`` and the ``chunks``. Ids of steps only ever grow.
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


@message("step.adopt")
class Adopt:
    """Slot ``slot`` goes on with a log of which it holds the first ``n_tokens`` entries already.

    They were shipped there, restored from a replica, or computed before a failure. What it holds
    beyond them is forgotten; holding less is a breach of protocol. ``context_ids`` are the tokens
    of those entries when the sampler needs them, else empty.
    """

    slot: int
    seq: int
    epoch: int
    n_tokens: int
    sample: int
    sampling: SamplingParams
    context_ids: tuple[int, ...] = ()


@message("step.ship")
class Ship:
    """Send the entries [0, stop) of a log, which ``slot`` holds, to slot ``target`` of pipeline
    ``to``; if it ``commits``, the log is complete there with them.
    """

    slot: int
    seq: int
    epoch: int
    stop: int
    to: int
    target: int
    commits: bool


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
    """Extend a log by prompt tokens from ``start``, then draw a first token for each ``draws``.

    With ``to``, the new entries go to slot ``target`` of that pipeline layer by layer, as each is
    computed; if it ``commits``, the log is complete there with them.
    """

    slot: int
    seq: int
    epoch: int
    start: int
    tokens: tuple[int, ...]
    draws: tuple[int, ...] = ()
    to: int | None = None
    target: int = 0
    commits: bool = False

    @property
    def stop(self) -> int:
        return self.start + len(self.tokens)


@message("step")
class Step:
    """One pass of one microbatch through a pipeline."""

    id: int
    microbatch: int
    pipeline: int = 0
    scrubs: tuple[int, ...] = ()
    opens: tuple[Open, ...] = ()
    adopts: tuple[Adopt, ...] = ()
    forks: tuple[Fork, ...] = ()
    ships: tuple[Ship, ...] = ()
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
    pipeline: int = 0
    decoded: tuple[SampledToken | DrawFailed, ...] = ()
    firsts: tuple[tuple[SampledToken | DrawFailed, ...], ...] = ()
    spans: tuple[tuple[float, float], ...] = ()
