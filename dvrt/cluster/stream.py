"""One request's way out: the emits of its samples, from the controller to whoever iterates."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from dvrt.control.events import Emit, Place
from dvrt.errors import DvrtError
from dvrt.requests import Request
from dvrt.results import Timings

_WAITING = (Place.QUEUE, Place.SLOT)


@dataclass(slots=True)
class _Pace:
    """Of one sample: when its latest token came, and what lay between those before."""

    latest: float
    n_gaps: int = 0
    seconds: float = 0.0


class RequestStream:
    """Emits in order, ended by the last sample's end or by an error.

    Bounded by the request itself: at most ``max_tokens`` times ``n`` emits. One consumer.
    """

    def __init__(self, request: Request, *, submitted: float) -> None:
        self.request = request
        self.n_generated = 0
        self._emits: deque[Emit] = deque()
        self._error: DvrtError | None = None
        self._open_samples = request.n
        self._waiter: asyncio.Future[None] | None = None
        self.submitted = submitted
        self.stays: list[tuple[Place, float]] = [(Place.QUEUE, submitted)]
        self._first: float | None = None
        self._last: float | None = None
        self._paces: dict[int, _Pace] = {}

    @property
    def samples(self) -> range:
        return range(self.request.n)

    @property
    def is_ended(self) -> bool:
        return not self._open_samples or self._error is not None

    @property
    def place(self) -> Place:
        """Where the request is."""
        return self.stays[-1][0]

    def entered(self, place: Place, now: float) -> None:
        """The request has come to another place."""
        self.stays.append((place, now))

    def put(self, emit: Emit, now: float) -> float | None:
        """Take an emit; the seconds since the sample's token before it, if both came just now."""
        gap = None
        if emit.token is not None:
            self.n_generated += 1
            self._first = now if self._first is None else self._first
            gap = self._time_token(emit.sample, now)
        self._last = now
        self._open_samples -= emit.finish is not None
        self._emits.append(emit)
        self._wake()
        return gap

    def fail(self, error: DvrtError) -> None:
        """End the stream with an error, unless it has ended; earlier emits are still delivered."""
        if not self.is_ended:
            self._error = error
            self._wake()

    @property
    def paces(self) -> list[float]:
        """Mean seconds from a token to the next, of each sample that got two or more.

        Tokens of an earlier life, which were recalled as of the submission, do not count.
        """
        return [each.seconds / each.n_gaps for each in self._paces.values() if each.n_gaps]

    def timings(self) -> Timings:
        """Meaningful once the stream has ended."""
        last = self._last if self._last is not None else self.submitted
        first = self._first if self._first is not None else last
        admitted = next((at for place, at in self.stays if place not in _WAITING), last)
        return Timings(
            queued_s=admitted - self.submitted,
            first_token_s=first - self.submitted,
            total_s=last - self.submitted,
            places=self._places(),
        )

    def spans(self) -> Iterator[tuple[Place, float, float]]:
        """Each stay in its order: where, from when, for how many seconds."""
        end = self._last if self._last is not None else self.submitted
        ends = [*(at for _, at in self.stays[1:]), end]
        for (place, began), over in zip(self.stays, ends, strict=True):
            yield place, began, max(0.0, over - began)

    def _time_token(self, sample: int, now: float) -> float | None:
        pace = self._paces.get(sample)
        if pace is None or pace.latest <= self.submitted:
            self._paces[sample] = _Pace(now)
            return None
        gap, pace.latest = now - pace.latest, now
        pace.n_gaps += 1
        pace.seconds += gap
        return gap

    def _places(self) -> dict[str, float]:
        times: dict[str, float] = {}
        for place, _, seconds in self.spans():
            times[place.value] = times.get(place.value, 0.0) + seconds
        return times

    def leave(self, cancel: Callable[[str], None]) -> None:
        """The consumer goes; what nobody wants any more is cancelled. The id of a request that has
        ended may be another's by now."""
        if not self.is_ended:
            cancel(self.request.id)

    def __aiter__(self) -> AsyncIterator[Emit]:
        return self

    async def __anext__(self) -> Emit:
        while not self._emits:
            if self._error is not None:
                raise self._error.with_traceback(None)  # one error ends many streams
            if not self._open_samples:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._emits.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
