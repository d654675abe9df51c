"""The receiving end of one stream: parcels find their place, and a step counts once it is proved.

Parcels that come before anybody asks for their step wait in staging, within the link's window.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dvrt.buffers import Region
from dvrt.cuda.fences import Fence
from dvrt.cuda.pinned import Staging
from dvrt.errors import ChannelClosed, Corrupted, PeerLost, ProtocolError
from dvrt.kv.digest import Sum, Tally, digest_of
from dvrt.kv.plan import Copy
from dvrt.streaming.cache import Cache
from dvrt.streaming.contiguous import finish, to_its_end
from dvrt.streaming.messages import Commit, Offer, Over, Parcel, Stored, over
from dvrt.streaming.parcels import Item, Packing, is_direct, pieces
from dvrt.streaming.terms import Terms, outline_of

if TYPE_CHECKING:
    from dvrt.streaming.link import Link


MAX_COMMITS = 4096


@dataclass(frozen=True, slots=True)
class Arrival:
    """A piece that has been received, and the memory that it is in; None: in its place."""

    parcel: Parcel
    nbytes: int
    staging: Staging | None
    regions: Sequence[Region]

    def release(self) -> None:
        if self.staging is not None:
            self.staging.release()


@dataclass(slots=True)
class Landing:
    """The place of one parcel in a cache, and how much of it is there."""

    item: Item
    cache: Cache
    packing: Packing
    may_be_direct: bool
    got_bytes: int = 0
    staging: Staging | None = None
    _starts: list[int] = field(default_factory=list)
    _pieces: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.may_be_direct and is_direct(self.packing):
            self._pieces = pieces(self.packing)
            self._starts = [start for _, start, _ in self._pieces]

    @property
    def is_complete(self) -> bool:
        return self.got_bytes == self.item.nbytes

    def continues(self, offset: int, nbytes: int) -> bool:
        """Whether a piece is the next one: pieces come in order, without gaps."""
        return offset == self.got_bytes and offset + nbytes <= self.item.nbytes

    def direct(self, sizes: Sequence[int]) -> list[Region] | None:
        """The cache's own memory for a whole parcel in these pieces; None where it cannot be."""
        if not self._pieces or sum(sizes) != self.item.nbytes:
            return None
        found, at = [], 0
        for size in sizes:
            memory, start, nbytes = self._pieces[bisect_right(self._starts, at) - 1]
            if at + size > start + nbytes:
                return None
            found.append(self.cache.region.part(memory + at - start, size))
            at += size
        return found


class InStream:
    """Made by ``accept``. One step is taken at a time; each must be taken to its end."""

    def __init__(
        self, link: Link, name: str, *, epoch: int, proved: int = -1, terms: Terms | None = None
    ) -> None:
        self.key = (name, epoch)
        self.terms = terms
        self.generation = 0
        self.proved = proved
        self.is_over = False
        self._link = link
        self._begun: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
        self._begun.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._queues: dict[int, deque[Arrival]] = defaultdict(deque)
        self._expected: dict[tuple[int, int], Landing] = {}
        self._commits: dict[int, Commit] = {}
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._placing: Fence | None = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<InStream {self.key[0]}@{self.key[1]} generation {self.generation}>"

    @property
    def is_broken(self) -> bool:
        return self._error is not None

    def begin(self, offer: Offer) -> bool:
        """Whether the offer may be granted; on other terms than these, the stream is over."""
        try:
            if self.terms is not None:
                self.terms.ensure(offer.terms, self.key[0])
        except Corrupted as error:
            for generation in {0, self.generation}:  # it knows none yet, or that of an older offer
                self._refuse(error, generation)
            return False
        if not self._begun.done():
            self._begun.set_result(offer)
        return True

    async def begun(self) -> Offer:
        """How the sender cuts its parcels, once it has offered the stream."""
        return await asyncio.shield(self._begun)

    async def take(
        self, step: int, landings: Sequence[Landing], copies: Sequence[Copy] | None = None
    ) -> AsyncGenerator[Landing, None]:
        """Each landing as it is in its place; when this ends, the step's commit record agreed.

        It must mean ``copies``, too, unless that is None.

        Nothing of the step may be used before that. Raises Corrupted (the stream is then over,
        the link is not), PeerLost, ChannelClosed.
        """
        waiting = {landing.item.index: landing for landing in landings}
        for index, landing in waiting.items():
            self._expected[step, index] = landing
        tally = Tally()
        try:
            while any(not landing.is_complete for landing in waiting.values()):
                landed = await self._land(await self._next(step), waiting, tally)
                if landed is not None:
                    yield landed
            commit = await self._commit(step)
            tally.ensure(_sum_of(commit))
            if copies is not None:
                meant = f"step {step} of {self.key[0]}"
                outline_of(copies).ensure(commit.outline, copies, meant)
        except Corrupted as error:
            self._refuse(error, self.generation)
            raise
        finally:
            self._forget_step(step, waiting)
        self.proved = max(self.proved, step)
        self._link.say(self._stored(step))
        self._link.kit.record("stored", self.key[0], step)

    def _forget_step(self, step: int, waiting: dict[int, Landing]) -> None:
        for index, landing in waiting.items():
            self._expected.pop((step, index), None)
            if landing.staging is not None:
                landing.staging.release()
                landing.staging = None
        for arrival in self._queues.pop(step, ()):
            self._done_with(arrival)

    async def _next(self, step: int) -> Arrival:
        while not self._queues[step]:
            await self._wait_for_news()
        return self._queues[step].popleft()

    async def _commit(self, step: int) -> Commit:
        while step not in self._commits:
            await self._wait_for_news()
        return self._commits.pop(step)

    async def _wait_for_news(self) -> None:
        if self._error is not None:
            raise self._error
        self._news.clear()
        await self._news.wait()

    async def _land(
        self, arrival: Arrival, waiting: dict[int, Landing], tally: Tally
    ) -> Landing | None:
        """Check a piece and put it in its place; the landing, when that completes it."""
        parcel = arrival.parcel
        try:
            is_checked = parcel.digest or self._link.kit.is_verified
            digest = digest_of(r.view() for r in arrival.regions) if is_checked else 0
            if digest != parcel.digest:
                self._link.kit.counters.corrupted_parcels += 1
                what = f"digest of parcel {parcel.index} of {self.key[0]}"
                raise Corrupted(what, expected=parcel.digest, got=digest)
            landing = waiting.get(parcel.index)
            if landing is None or not landing.continues(parcel.offset, arrival.nbytes):
                raise Corrupted(f"parcel of {self.key[0]}", expected=len(waiting), got=parcel)
            tally.add(len(tally), nbytes=arrival.nbytes, digest=digest)
            await self._place(arrival, landing)
        finally:
            self._done_with(arrival)
        kit = self._link.kit
        kit.counters.parcels_received += 1
        kit.counters.bytes_received += arrival.nbytes
        if not landing.is_complete:
            return None
        kit.record(
            "arrived",
            self.key[0],
            parcel.step,
            index=parcel.index,
            layer=landing.item.last_layer,
        )
        return landing

    async def _place(self, arrival: Arrival, landing: Landing) -> None:
        landing.got_bytes += arrival.nbytes
        if arrival.staging is None:
            return
        if arrival.nbytes == landing.item.nbytes:
            await finish(self._unpack(landing, arrival.staging.region))
            return
        if landing.staging is None:
            landing.staging = await self._link.kit.landing.lease(landing.item.nbytes)
        part = landing.staging.region.part(arrival.parcel.offset, arrival.nbytes)
        part.view()[:] = arrival.staging.region.view()
        if landing.is_complete:
            await finish(self._unpack(landing, landing.staging.region))

    def _unpack(self, landing: Landing, packed: Region) -> Fence:
        kit = self._link.kit
        kit.counters.copies_in += len(landing.packing.parts)
        self._placing = kit.device.unpack(landing.cache.region, packed, landing.packing.unpacking)
        return self._placing

    def _done_with(self, arrival: Arrival) -> None:
        arrival.release()
        self._link.credit(arrival.parcel.sequence)

    def direct(self, parcel: Parcel, sizes: Sequence[int]) -> list[Region] | None:
        """Where this parcel may be received in place; None where it needs staging."""
        landing = self._expected.get((parcel.step, parcel.index))
        if landing is None or landing.got_bytes or self.is_over or parcel.offset:
            return None
        return landing.direct(sizes)

    def receiving(self) -> None:
        """The link begins to write into this stream's own memory; ``received`` must follow."""
        self._idle.clear()

    def received(self) -> None:
        """Nothing writes there any more."""
        self._idle.set()

    def arrived(self, arrival: Arrival) -> None:
        if self.is_over:
            self._link.kit.counters.late_parcels += 1
            self._done_with(arrival)
            return
        self._queues[arrival.parcel.step].append(arrival)
        self._news.set()

    def committed(self, commit: Commit) -> None:
        if len(self._commits) >= MAX_COMMITS:
            raise ProtocolError(f"{MAX_COMMITS} commits of {self.key[0]} that nobody waits for")
        self._commits[commit.step] = commit
        self._news.set()

    def told_over(self, message: Over) -> None:
        if message.reason:
            self.fail(PeerLost(f"the sender of stream {self.key[0]} ended it: {message.reason}"))
        else:
            self.fail(ChannelClosed(f"stream {self.key[0]} is complete"))
        self._link.forget(self)

    def fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self.is_over = True
        if not self._begun.done():
            self._begun.set_exception(error)
        self._news.set()

    def _refuse(self, error: Corrupted, generation: int) -> None:
        said = self._over_message(str(error), is_corrupted=True)
        self._link.say(replace(said, generation=generation))
        self._link.forget(self)
        self.fail(error)

    async def cancel(self, reason: str = "cancelled", *, grace_s: float = 5.0) -> None:
        """End the stream; returns when nothing can write to its caches any more.

        A parcel that is just being received in place is finished; where that takes longer than
        ``grace_s``, the link is aborted, and with it every stream on it. What comes later is
        counted and dropped. Cancelling this call changes nothing of that.
        """
        self._link.forget(self)
        self.fail(PeerLost(f"stream {self.key[0]} was cancelled here"))
        await to_its_end(self._settle(grace_s))
        self._link.say(self._over_message(reason))

    async def _settle(self, grace_s: float) -> None:
        """Wait until nothing writes; give back what came for nobody."""
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            self._link.abort(PeerLost("a parcel was under way for too long"))
            await self._link.wait_over()
        if self._placing is not None:
            await self._placing.ended()
        self._give_back()

    def _give_back(self) -> None:
        for queue in self._queues.values():
            while queue:
                self._done_with(queue.popleft())

    def abandon(self, reason: str) -> None:
        """End a stream of which no step was asked for yet; never waits."""
        self.close()
        self.fail(PeerLost(f"stream {self.key[0]} was abandoned here: {reason}"))
        self._link.say(self._over_message(reason))

    def close(self) -> None:
        """No more steps are expected."""
        self._link.forget(self)
        self.is_over = True
        self._give_back()

    def _stored(self, step: int) -> Stored:
        name, epoch = self.key
        return Stored(stream=name, epoch=epoch, generation=self.generation, step=step)

    def _over_message(self, reason: str, *, is_corrupted: bool = False) -> Over:
        return over(
            self.key,
            self.generation,
            is_from_sender=False,
            reason=reason,
            is_corrupted=is_corrupted,
        )


def accept(
    link: Link, name: str, *, epoch: int = 0, proved: int = -1, terms: Terms | None = None
) -> InStream:
    """Expect a stream of this name; the peer's offer is granted as soon as it is there.

    ``proved`` is the last step that is here already, of the same stream on a link before. An offer
    on other ``terms`` is refused, and the stream over.
    """
    stream = InStream(link, name, epoch=epoch, proved=proved, terms=terms)
    link.accept(stream)
    return stream


def _sum_of(commit: Commit) -> Sum:
    return Sum(chunks=commit.chunks, nbytes=commit.nbytes, digest=commit.digest)
