"""Requests of a simulated cluster: how they are asked for, where they are, when they are done."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from dvrt.control.events import Emit, Entered, Place
from dvrt.errors import DvrtError
from dvrt.requests import FinishReason, Request, SamplingParams
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.tally import Ended, Tally

GREEDY = SamplingParams(temperature=0.0)
OnEnd = Callable[[Ended], None]


@cache
def prompt_ids(n_tokens: int) -> tuple[int, ...]:
    """Tokens do not matter here; prompts of one length share them."""
    return (0,) * n_tokens


class _Open:
    """A request that is being served."""

    __slots__ = ("arrival", "first_s", "place", "since_s")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.first_s = -1.0
        self.place = Place.QUEUE
        self.since_s = arrival.at_s


class RequestBook:
    """All open requests by id, told to the tally as they go from place to place."""

    def __init__(self, tally: Tally, on_end: OnEnd | None = None) -> None:
        self._tally = tally
        self._on_end = on_end
        self._open: dict[str, _Open] = {}
        self._n_opened = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def n_ended(self) -> int:
        return self._n_opened - len(self._open)

    def open(self, arrival: Arrival) -> Request:
        """The request as the scheduler takes it; it ends with its last token and no sooner."""
        self._n_opened += 1
        name = str(self._n_opened)
        self._open[name] = _Open(arrival)
        return Request(
            id=name,
            prompt_ids=prompt_ids(arrival.prompt),
            max_tokens=arrival.output,
            sampling=GREEDY,
        )

    def entered(self, news: Entered) -> None:
        request = self._open[news.request_id]
        self._tally.waited(request.place, news.now - request.since_s)
        request.place, request.since_s = news.place, news.now

    def emitted(self, emit: Emit, now: float) -> None:
        """The first token and the last one are noted. DvrtError if a request ends otherwise."""
        if emit.index and emit.finish is None:
            return
        request = self._open[emit.request_id]
        if not emit.index:
            request.first_s = now
        if emit.finish is FinishReason.LENGTH:
            self._end(emit.request_id, request, now)
        elif emit.finish is not None:
            raise DvrtError(f"request {emit.request_id} ended with {emit.finish}: {emit.error}")

    def _end(self, name: str, request: _Open, now: float) -> None:
        del self._open[name]
        arrival = request.arrival
        self._tally.waited(request.place, now - request.since_s)
        ended = Ended(arrival.at_s, request.first_s, now, arrival.prompt, arrival.output)
        self._tally.ended(ended)
        if self._on_end is not None:
            self._on_end(ended)
