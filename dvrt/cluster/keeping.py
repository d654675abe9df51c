"""What a journal means for requests: each is written down, and can be found again by its id."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from dvrt.cluster.journal import Journal, Then
from dvrt.cluster.journal_store import Asked, Entry, Story
from dvrt.cluster.kept_stream import KeptStream
from dvrt.control.events import Emit, Submit
from dvrt.errors import DvrtError, RequestRejected
from dvrt.requests import FinishReason, Request
from dvrt.wire import encode

SequencesOf = Callable[[str], Mapping[int, int]]
SeatOf = Callable[[int], tuple[int, int] | None]


class Keeper:
    """Writes requests and their emits into a journal, and makes streams of what is in it.

    ``linger_s`` is how long a request that was asked for by its client's id goes on without a
    reader, and any request of an earlier life. ``seat_of(seq)`` says where the log of a sequence of
    an earlier life still is: pipeline and slot.
    """

    def __init__(self, journal: Journal, *, linger_s: float) -> None:
        self._journal, self._linger_s = journal, linger_s
        self._open: dict[str, int] = {}
        self._named: set[str] = set()
        self.seat_of: SeatOf = lambda seq: None

    def begin(
        self, request: Request, *, stop: tuple[str, ...], lingers: bool, now: float
    ) -> KeptStream:
        """A new request was taken."""
        asked = Asked(request=request, taken_at=time.time(), stop=stop)
        self._journal.taken(asked)
        self._open[request.id] = request.n
        linger_s = self._linger_s if lingers else 0.0
        return KeptStream(asked, submitted=now, linger_s=linger_s)

    def resume(self, story: Story, now: float) -> tuple[KeptStream, Submit]:
        """A request of an earlier life: its stream, and how to go on with it."""
        asked = story.asked
        age_s = max(0.0, time.time() - asked.taken_at)
        stream = self._stream(story, submitted=now - age_s)
        known = tuple(
            each if each is None else replace(each, seat=self.seat_of(each.seq))
            for each in story.known()
        )
        n_ended = sum(1 for each in known if each is None)
        self._open[asked.request.id] = asked.request.n - n_ended
        if known:
            self._named.add(asked.request.id)
        return stream, Submit(request=asked.request, now=now, known=known, age_s=age_s)

    def in_order(self, stories: Iterable[Story]) -> tuple[Story, ...]:
        """Those whose logs are in their rows come first, so that nobody else gets these rows."""

        def has_none(story: Story) -> bool:
            return not any(each is not None and self.seat_of(each.seq) for each in story.known())

        return tuple(sorted(stories, key=has_none))

    async def find(self, request_id: str, now: float) -> KeptStream | None:
        """The stream of a request that is not running, if the journal has it."""
        story = await self._journal.story(request_id)
        return None if story is None else self._stream(story, submitted=now)

    def record(self, emits: Sequence[Emit], sequences_of: SequencesOf, then: Then) -> None:
        """Write these; ``then`` is called when they may be seen."""
        sequences: dict[tuple[str, int], int] = {}
        ended: list[str] = []
        for emit in emits:
            name = emit.request_id
            if emit.token is not None and name not in self._named:
                self._named.add(name)
                sequences |= {(name, n): seq for n, seq in sequences_of(name).items()}
            if emit.finish is not None:
                self._open[name] -= 1
                if not self._open[name]:
                    del self._open[name]
                    self._named.discard(name)
                    ended.append(name)
        entry = Entry(emits=tuple(emits), sequences=sequences, ended=tuple(ended), now=time.time())
        self._journal.write(entry, then)

    def _stream(self, story: Story, *, submitted: float) -> KeptStream:
        stream = KeptStream(story.asked, submitted=submitted, linger_s=self._linger_s)
        stream.recall(story.emits)
        return stream


def ensure_writable(request: Request, stop: tuple[str, ...]) -> None:
    """Raise RequestRejected for what cannot be written down, before anybody takes it."""
    try:
        encode(Asked(request=request, taken_at=0.0, stop=stop))
    except (DvrtError, ValueError, OverflowError) as error:
        raise RequestRejected(f"the journal cannot hold this request: {error}") from None


def refusals(story: Story, error: Exception) -> list[Emit]:
    """How a request of an earlier life ends that cannot be served any more."""
    ended = {emit.sample for emit in story.emits if emit.finish is not None}
    counts = [0] * story.asked.request.n
    for emit in story.emits:
        counts[emit.sample] += emit.token is not None
    return [
        Emit(
            request_id=story.asked.request.id,
            sample=sample,
            index=count,
            token=None,
            finish=FinishReason.ERROR,
            error=str(error),
        )
        for sample, count in enumerate(counts)
        if sample not in ended
    ]
