"""The sending end of one stream: parcels in steps, each step closed by a commit record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dvrt.buffers import Region
from dvrt.cuda.pinned import size_class
from dvrt.errors import Corrupted, DvrtError, PeerLost
from dvrt.kv.digest import Tally, digest_of
from dvrt.streaming.contiguous import deadline, to_its_end
from dvrt.streaming.messages import (
    Commit,
    Grant,
    Grouping,
    Offer,
    Over,
    Parcel,
    Stored,
    over,
)
from dvrt.streaming.terms import Outline, Terms

if TYPE_CHECKING:
    from dvrt.streaming.link import Link


class Outgoing:
    """A parcel on its way: its regions are read until ``sent`` is done."""

    __slots__ = ("_parcel", "_release", "nbytes", "regions", "sent", "stream")

    def __init__(
        self,
        stream: OutStream,
        parcel: Parcel,
        regions: Sequence[Region],
        release: Callable[[], object] | None,
    ) -> None:
        self.stream = stream
        self.regions = regions
        self.nbytes = sum(region.nbytes for region in regions)
        self.sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
        self._parcel = parcel
        self._release = release

    @property
    def cost_bytes(self) -> int:
        """What it takes of the window: the staging that it may need at the peer."""
        return size_class(self.nbytes)

    def header(self, sequence: int) -> Parcel:
        p = self._parcel
        return Parcel(
            stream=p.stream,
            epoch=p.epoch,
            generation=p.generation,
            step=p.step,
            index=p.index,
            offset=p.offset,
            sequence=sequence,
            digest=p.digest,
        )

    def settle(self, error: BaseException | None) -> None:
        """The parcel is sent or never will be: nothing reads its regions any more."""
        if self._release is not None:
            self._release()
            self._release = None
        if self.sent.done():
            return
        if error is None:
            self.sent.set_result(None)
        else:
            self.sent.set_exception(error)


class OutStream:
    """Made by ``open_out``. Steps are shipped one after another; commits may be awaited later."""

    def __init__(
        self,
        link: Link,
        name: str,
        *,
        epoch: int,
        grouping: Grouping,
        max_parcel_bytes: int,
        terms: Terms | None = None,
    ) -> None:
        self.key = (name, epoch)
        self.generation = 0
        self.proved = -1
        self.offer = Offer(
            stream=name,
            epoch=epoch,
            grouping=grouping,
            max_parcel_bytes=max_parcel_bytes,
            terms=terms,
        )
        self._link = link
        self._tallies: dict[int, Tally] = {}
        self._counts: dict[int, int] = {}
        self._stored: dict[int, asyncio.Future[None]] = {}
        self._granted = _future()
        self._error: BaseException | None = None
        self._is_over = False

    def __repr__(self) -> str:
        return f"<OutStream {self.key[0]}@{self.key[1]} generation {self.generation}>"

    async def granted(self, *, deadline_s: float | None) -> None:
        async with deadline(deadline_s, f"the offer of stream {self.key[0]}"):
            await asyncio.shield(self._granted)

    def ship(
        self,
        step: int,
        index: int,
        offset: int,
        regions: Sequence[Region],
        release: Callable[[], object] | None = None,
    ) -> Outgoing:
        """Submit a piece of a parcel; ``release`` is called when nothing reads the regions.

        Raises what ended the stream; ``release`` is then called before.
        """
        name, epoch = self.key
        nbytes = sum(region.nbytes for region in regions)
        is_verified = self._link.kit.is_verified
        digest = digest_of(region.view() for region in regions) if is_verified else 0
        parcel = Parcel(
            stream=name,
            epoch=epoch,
            generation=self.generation,
            step=step,
            index=index,
            offset=offset,
            sequence=0,
            digest=digest,
        )
        outgoing = Outgoing(self, parcel, regions, release)
        try:
            self.ensure_usable()
            self._link.submit(outgoing)
        except DvrtError as error:
            outgoing.settle(error)
            raise
        piece = self._counts.get(step, 0)
        self._counts[step] = piece + 1
        self._tallies.setdefault(step, Tally()).add(piece, nbytes=nbytes, digest=digest)
        return outgoing

    def commit(self, step: int, outline: Outline | None = None) -> asyncio.Future[None]:
        """State what the step consisted of and meant; done when the peer has found it so.

        Fails with Corrupted where it did not, with PeerLost when the link breaks first.
        """
        self.ensure_usable()
        total = self._tallies.pop(step, Tally()).sum()
        self._counts.pop(step, None)
        name, epoch = self.key
        future = self._stored[step] = _future()
        self._link.say(
            Commit(
                stream=name,
                epoch=epoch,
                generation=self.generation,
                step=step,
                chunks=total.chunks,
                nbytes=total.nbytes,
                digest=total.digest,
                outline=outline,
            )
        )
        return future

    @property
    def is_broken(self) -> bool:
        return self._error is not None

    def ensure_usable(self) -> None:
        if self._error is not None:
            raise self._error
        self._link.ensure_open()

    def told(self, message: Grant | Stored) -> None:
        if isinstance(message, Grant):
            self.generation = message.generation
            self.proved = max(self.proved, message.proved)
            if not self._granted.done():
                self._granted.set_result(None)
        elif message.generation == self.generation and message.step in self._stored:
            future = self._stored.pop(message.step)
            self.proved = max(self.proved, message.step)
            if not future.done():
                future.set_result(None)

    def told_over(self, message: Over) -> None:
        """The receiver wants no more of it."""
        if message.is_corrupted:
            error: DvrtError = Corrupted(f"stream {self.key[0]}", expected="", got=message.reason)
        else:
            error = PeerLost(f"the receiver of stream {self.key[0]} ended it: {message.reason}")
        self._link.forget(self)
        self._link.withdraw(self)
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        for future in (self._granted, *self._stored.values()):
            if not future.done():
                future.set_exception(error)
        self._stored.clear()

    async def cancel(self, reason: str = "cancelled", *, grace_s: float = 5.0) -> None:
        """End the stream; returns when nothing reads the memory of its parcels.

        A parcel that is on the wire is finished; where that takes longer than ``grace_s``, the
        link is aborted, and with it every stream on it. Cancelling this call changes nothing of
        that.
        """
        if self._is_over:
            return
        self._is_over = True
        self._link.forget(self)
        self._link.withdraw(self)
        self.fail(PeerLost(f"stream {self.key[0]} was cancelled here"))
        await to_its_end(self._settle(grace_s))
        self._say_over(reason)

    async def _settle(self, grace_s: float) -> None:
        """Wait until nothing reads."""
        sending = self._link.sending_of(self)
        if sending is not None:
            await asyncio.wait([sending], timeout=grace_s)
            if not sending.done():
                self._link.abort(PeerLost("a parcel was under way for too long"))
                await self._link.wait_over()

    def close(self) -> None:
        """The stream is complete; call it when the last commit was confirmed."""
        if self._is_over:
            return
        self._is_over = True
        self._link.forget(self)
        self._say_over("")

    def _say_over(self, reason: str) -> None:
        self._link.say(over(self.key, self.generation, is_from_sender=True, reason=reason))


async def open_out(
    link: Link,
    name: str,
    *,
    epoch: int = 0,
    grouping: Grouping = Grouping.LAYERS,
    max_parcel_bytes: int | None = None,
    terms: Terms | None = None,
    deadline_s: float | None,
) -> OutStream:
    """Offer a stream and wait until the peer accepts it. Raises PeerLost, TransferTimeout.

    Raises Corrupted where the peer expects it on other terms. Parcels are no larger than the
    peer's window, whatever this side could send.
    """
    limit = min(max_parcel_bytes or link.kit.max_parcel_bytes, link.peer.window_bytes)
    stream = OutStream(
        link, name, epoch=epoch, grouping=grouping, max_parcel_bytes=limit, terms=terms
    )
    try:
        await link.offer(stream, deadline_s=deadline_s)
    except BaseException:
        await stream.cancel()
        raise
    return stream


def _future() -> asyncio.Future[None]:
    """A future whose error may stay unread: whoever still cares awaits it."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
