"""What a request may ask for, and when the queue is full."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dvrt.control.book import Book
from dvrt.control.fleet import Fleet
from dvrt.errors import Overloaded, RequestRejected
from dvrt.requests import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for: ``max_context`` counts prompt and generated tokens together.

    ``max_queue`` is how many requests may wait for their first row.
    """

    max_context: int
    vocab_size: int
    max_queue: int


class Admission:
    """Judges requests by the limits, and says when to come again."""

    def __init__(self, limits: Limits, book: Book, fleet: Fleet) -> None:
        self._limits = limits
        self._book = book
        self._fleet = fleet
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
        return None if is_known else self._overload(now)

    def _overload(self, now: float) -> Overloaded | None:
        """Why one more request cannot wait; None if it can, or need not."""
        n_samples, max_queue = len(self._book.queue), self._limits.max_queue
        if n_samples < max_queue:
            return None
        n_free = self._fleet.n_free_rows
        n_waiting = self._book.n_waiting(n_free)
        if n_samples < n_free or n_waiting < max_queue:
            return None
        return Overloaded(
            f"{n_waiting} requests wait already; the limit is {max_queue}",
            retry_after_s=self._retry_after_s(n_waiting, now),
        )

    def _retry_after_s(self, n_waiting: int, now: float) -> float:
        """The time in which, at the recent rate, a tenth of the queue will have been served."""
        if len(self._ends) < 2:
            return 1.0
        interval = (now - self._ends[0]) / len(self._ends)
        return min(60.0, max(1.0, interval * n_waiting / 10))
