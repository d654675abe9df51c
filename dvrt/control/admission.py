"""What a request may ask for, and when the queue is full."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dvrt.control.book import Book
from dvrt.errors import Overloaded, RequestRejected
from dvrt.requests import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for: ``max_context`` counts prompt and generated tokens together."""

    max_context: int
    vocab_size: int
    max_queue: int


class Admission:
    """Judges requests by the limits, and says when to come again."""

    def __init__(self, limits: Limits, book: Book) -> None:
        self._limits = limits
        self._book = book
        self._ends: deque[float] = deque(maxlen=64)

    def ended(self, now: float) -> None:
        """A request has ended; the rate of these is what a full queue is judged by."""
        self._ends.append(now)

    def refusal(
        self, request: Request, now: float, *, is_known: bool = False
    ) -> RequestRejected | None:
        """Why the request cannot be taken; None if it can. One ``is_known`` finds any queue
        short enough."""
        limits, n_prompt = self._limits, len(request.prompt_ids)
        if request.id in self._book.groups:
            return RequestRejected(f"request {request.id!r} is already running", param="request_id")
        if n_prompt + request.max_tokens > limits.max_context:
            return RequestRejected(
                f"the context is {limits.max_context} tokens; the prompt has {n_prompt} and"
                f" {request.max_tokens} more were asked for",
                param="prompt" if n_prompt >= limits.max_context else "max_tokens",
                code="context_length_exceeded",
            )
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= limits.vocab_size:
            bad = next(i for i in request.prompt_ids if not 0 <= i < limits.vocab_size)
            return RequestRejected(
                f"token id {bad} is outside the vocabulary [0, {limits.vocab_size})",
                param="prompt",
            )
        n_queued = len(self._book.queue)
        if n_queued >= limits.max_queue and not is_known:
            return Overloaded(
                f"{n_queued} requests wait already; the limit is {limits.max_queue}",
                retry_after_s=self._retry_after_s(now),
            )
        return None

    def _retry_after_s(self, now: float) -> float:
        """The time in which, at the recent rate, a tenth of the queue will have been served."""
        if len(self._ends) < 2:
            return 1.0
        interval = (now - self._ends[0]) / len(self._ends)
        return min(60.0, max(1.0, interval * len(self._book.queue) / 10))
