"""The receiving end of a transfer between two sides: this worker's share, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from dvrt.errors import TransferTimeout
from dvrt.kv.plan import Copy, Tokens, Worker, of_target, peers_of_target, plan
from dvrt.kv.spans import Span
from dvrt.streaming.cache import Cache
from dvrt.streaming.contiguous import all_through, deadline
from dvrt.streaming.incoming import InStream, Landing, accept
from dvrt.streaming.kit import Kit
from dvrt.streaming.link import Link
from dvrt.streaming.parcels import Item, items, pack_all
from dvrt.streaming.setups import Setups
from dvrt.streaming.terms import terms_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A box that is in its place, not yet proved by its step's commit record."""

    peer: Worker
    layers: Span
    heads: Span
    tokens: Span
    requests: tuple[int, ...]


class Inflow:
    """One worker's receiving end: a stream from each peer. Made by ``open_inflow``."""

    def __init__(
        self,
        kit: Kit,
        name: str,
        setups: Setups,
        me: Worker,
        caches: Sequence[Cache],
        streams: dict[Worker, InStream],
    ) -> None:
        self._kit, self._name = kit, name
        self._setups, self._me, self._caches = setups, me, caches
        self._streams = streams

    async def take(
        self,
        step: int,
        tokens: Tokens,
        *,
        deadline_s: float | None,
        setups: Setups | None = None,
    ) -> AsyncGenerator[Arrived, None]:
        """Boxes as they are in place, from all peers; when it ends, the step is proved.

        Steps are numbered upwards. An error of one peer is raised when all others are through.
        Raises Corrupted, PeerLost, ChannelClosed, TransferTimeout; then, and when the iteration is
        left early, ``cancel`` must follow, or ``resume`` and the same step once more.
        """
        now = setups or self._setups
        copies = of_target(plan(now.source, now.target, tokens), self._me)
        arrived: asyncio.Queue[Arrived | None] = asyncio.Queue()

        taking = self._take_all(step, copies, arrived, deadline_s)
        task = asyncio.create_task(taking, name=f"take {self._name}")
        try:
            while (box := await arrived.get()) is not None:
                yield box
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def _take_all(
        self,
        step: int,
        copies: Mapping[Worker, Sequence[Copy]],
        arrived: asyncio.Queue[Arrived | None],
        deadline_s: float | None,
    ) -> None:
        """Put what arrives into the queue, and None behind the last."""
        try:
            async with deadline(deadline_s, f"step {step} of stream {self._name}"):
                await all_through(
                    self._take_from(peer, step, found, arrived.put_nowait)
                    for peer, found in copies.items()
                    if self._streams[peer].proved < step
                )
        except TransferTimeout:
            if any(self._streams[peer].proved < step for peer in copies):
                raise  # else it was proved in the very moment, and the sender may have gone
        finally:
            arrived.put_nowait(None)

    async def _take_from(
        self, peer: Worker, step: int, copies: Sequence[Copy], put: Callable[[Arrived], None]
    ) -> None:
        stream = self._streams[peer]
        offer = await stream.begun()
        wire = self._setups.wire
        expected = items(copies, wire, offer.grouping, offer.max_parcel_bytes)
        landings = [self._landing(item) for item in expected]
        async with aclosing(stream.take(step, landings, copies)) as landed:
            async for landing in landed:
                for copy in landing.item.copies:
                    put(_arrived(peer, copy))

    def _landing(self, item: Item) -> Landing:
        cache = self._caches[item.copies[0].target_batch]
        boxes = [copy.target_box for copy in item.copies]
        found = pack_all(cache.layout, boxes, cache.table, self._setups.wire)
        return Landing(item, cache, found, self._kit.reaches_device)

    @property
    def lost(self) -> tuple[Worker, ...]:
        """The peers whose stream has ended."""
        return tuple(peer for peer, stream in self._streams.items() if stream.is_broken)

    async def resume(self, links: Mapping[Worker, Link]) -> None:
        """Expect the streams of these peers again, on new links; they go on where they were proved.

        Returns when nothing of the former streams can write to the caches any more. Take the step
        that failed once more.
        """
        for peer, link in links.items():
            former = self._streams[peer]
            await former.cancel("the stream goes on in a new incarnation")
            name, epoch = former.key
            self._streams[peer] = accept(
                link, name, epoch=epoch, proved=former.proved, terms=former.terms
            )

    async def cancel(self, reason: str = "cancelled") -> None:
        """End every stream; returns when nothing can write to the caches any more."""
        await asyncio.gather(*(stream.cancel(reason) for stream in self._streams.values()))

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()


def _arrived(peer: Worker, copy: Copy) -> Arrived:
    return Arrived(
        peer=peer,
        layers=copy.layers,
        heads=copy.heads,
        tokens=copy.tokens,
        requests=copy.requests,
    )


def open_inflow(
    kit: Kit,
    name: str,
    setups: Setups,
    me: Worker,
    caches: Sequence[Cache],
    links: Mapping[Worker, Link],
    *,
    epoch: int = 0,
) -> Inflow:
    """Expect a stream from every peer that the set-ups imply; each offer is granted at once.

    Raises PeerLost where a link is over, and then expects nothing of the others either.
    """
    streams: dict[Worker, InStream] = {}
    try:
        for peer in peers_of_target(setups.source, setups.target, me):
            terms = terms_of(setups, peer, me)
            streams[peer] = accept(links[peer], name, epoch=epoch, terms=terms)
    except BaseException as error:
        for stream in streams.values():
            stream.abandon(str(error))
        raise
    return Inflow(kit, name, setups, me, caches, streams)
