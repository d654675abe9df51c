"""What callers of an engine receive: tokens as they come, completions, and the status of it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dvrt.requests import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token of one sample.

    ``text`` is what became certain with this token: it may be empty (half a character, a possible
    stop string, a stopping token) or hold text that earlier tokens had held back. The pieces of a
    sample joined equal the text of its completion. ``finish_reason`` is set on the last token only.
    """

    id: int
    text: str
    index: int
    sample: int = 0
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One finished sample; the stopping token is in ``token_ids`` and not in ``text``."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    tokens: tuple[Token, ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds: waiting for a row, from submission to the first token, and to the end.

    ``places`` says how long the request was where: queue, slot, prompt, transfer, token.
    """

    queued_s: float
    first_token_s: float
    total_s: float
    places: Mapping[str, float] = field(default_factory=dict)

    def per_token_s(self, n_tokens: int) -> float:
        """Mean time between the ``n_tokens`` of a request's only sample; 0 for a single token.

        With several samples these times are the whole request's, and say nothing of one sample.
        """
        return (self.total_s - self.first_token_s) / (n_tokens - 1) if n_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A request's outcome; ``token_ids``, ``text`` and ``finish_reason`` are the first sample's."""

    request_id: str
    n_prompt_tokens: int
    samples: tuple[Sample, ...]
    timings: Timings

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.samples[0].token_ids

    @property
    def text(self) -> str:
        return self.samples[0].text

    @property
    def finish_reason(self) -> FinishReason:
        return self.samples[0].finish_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker as the controller sees it; ``layers`` is the half-open interval it holds.

    ``role`` is stage, prompt, token or spare; ``state`` is idle, loading, loaded, ready, lost or
    ended. Of its weights it has ``weights_bytes``; of ``weights_total``, which a stage that loads
    knows once it reads. ``replica_lag`` is how many tokens of a sequence the copies of its logs
    lack now; None without copies. Logs that holders of copies have no room for are not counted in
    it. ``swap`` says, where the worker swaps, how it goes: its ``gain`` is how many times the
    tokens of half the batch without swapping there are if requests fill the context.
    """

    name: str
    pid: int
    role: str
    stage: int | None
    layers: tuple[int, int] | None
    state: str
    device: str
    weights_bytes: int = 0
    weights_total: int = 0
    kv_bytes: int = 0
    steps: int = 0
    busy_s: float = 0.0
    pipeline: int | None = None
    replica_lag: int | None = None
    swap: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStatus:
    """One pipeline: what it is for (both, prompt or token) and the states of its stages."""

    id: int
    purpose: str
    n_microbatches: int
    batch_size: int
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The cluster at one moment.

    ``state`` is starting, serving, recovering, degraded, draining, failed or stopped; ``reason``
    says why it is recovering or degraded or has failed. ``n_queued`` and ``n_running`` are
    samples without a row and with one, ``n_rows`` the rows in all, ``n_finished`` requests.
    ``n_lost`` counts workers that were lost since the launch.
    """

    model: str
    state: str
    workers: tuple[WorkerStatus, ...]
    n_queued: int
    n_running: int
    n_rows: int
    n_finished: int
    uptime_s: float
    reason: str = ""
    pipelines: tuple[PipelineStatus, ...] = ()
    n_lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What callers need to know of the model that is served."""

    name: str
    family: str
    n_layers: int
    vocab_size: int
    max_context: int
    has_tokenizer: bool = False
