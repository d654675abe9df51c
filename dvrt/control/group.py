"""A request in progress: its samples, of which the first computes the prompt for all."""

from __future__ import annotations

from dvrt.control.events import Place
from dvrt.control.sequence import Sequence
from dvrt.requests import Request


class Group:
    """The live samples of one request. Only sample 0 exists until its first token is drawn."""

    __slots__ = ("deadline", "live", "place", "request")

    def __init__(self, request: Request, now: float) -> None:
        self.request = request
        self.live: dict[int, Sequence] = {}
        self.place = Place.QUEUE
        self.deadline = None if request.deadline_s is None else now + request.deadline_s

    @property
    def waiting(self) -> list[Sequence]:
        """Samples that know their first token and wait for a row."""
        return [s for s in self.live.values() if s.seat is None and s.n_generated]

    @property
    def unborn(self) -> range:
        """Samples that do not exist yet: the first token brings them to life."""
        is_in_prompt = len(self.live) == 1 and 0 in self.live and not self.live[0].n_generated
        return range(1, self.request.n if is_in_prompt else 1)

    @property
    def seated(self) -> list[Sequence]:
        return [s for s in self.live.values() if s.seat is not None]
