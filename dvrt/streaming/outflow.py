"""The sending end of a transfer between two sides: this worker's share, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from dvrt.buffers import Region
from dvrt.cuda.fences import Fence
from dvrt.cuda.pinned import Staging
from dvrt.errors import TransferTimeout
from dvrt.kv.plan import Copy, Tokens, Worker, of_source, peers_of_source, plan
from dvrt.streaming.cache import Cache
from dvrt.streaming.contiguous import all_through, deadline, finish
from dvrt.streaming.kit import Kit
from dvrt.streaming.link import Link
from dvrt.streaming.messages import Grouping
from dvrt.streaming.modes import LayerGate, Mode
from dvrt.streaming.outgoing import OutStream, open_out
from dvrt.streaming.parcels import Item, Packing, by_layer, is_direct, items, pack_all, pieces
from dvrt.streaming.region import own_regions, split
from dvrt.streaming.setups import Setups
from dvrt.streaming.terms import outline_of, terms_of


class Outflow:
    """One worker's sending end of a transfer: a stream to each peer, used for many steps.

    Made by ``open_outflow``. ``caches`` are the worker's microbatches.
    """

    def __init__(
        self,
        kit: Kit,
        name: str,
        setups: Setups,
        me: Worker,
        caches: Sequence[Cache],
        mode: Mode,
        streams: dict[Worker, OutStream],
    ) -> None:
        self._kit, self._name, self._mode = kit, name, mode
        self._setups, self._me, self._caches = setups, me, caches
        self._streams = streams

    async def ship(
        self,
        step: int,
        tokens: Tokens,
        *,
        deadline_s: float | None,
        gate: LayerGate | None = None,
        after: Sequence[Fence] = (),
        setups: Setups | None = None,
    ) -> None:
        """Send the target its part of ``tokens``; returns when the peers have proved it.

        With a gate, each layer leaves when the gate opens for it (all after the last one in the
        modes that stream after the compute). ``setups`` where requests changed their rows since.
        Entries of the log never change, so the caches may be used meanwhile. Steps are numbered
        upwards; what goes to other peers is sent to its end before an error of one is raised.
        Cancelled or failed, ``cancel`` must follow, or ``resume`` and the step once more. Raises
        Corrupted, PeerLost, TransferTimeout.
        """
        now = setups or self._setups
        copies = of_source(plan(now.source, now.target, tokens), self._me)
        try:
            async with deadline(deadline_s, f"step {step} of stream {self._name}"):
                if gate is not None and self._mode in (Mode.NAIVE, Mode.BUFFERED):
                    after = [*after, *await gate.wait(now.source.layers[self._me.stage].stop - 1)]
                    gate = None
                await all_through(
                    self._ship_to(peer, step, found, gate, after)
                    for peer, found in copies.items()
                    if self._streams[peer].proved < step
                )
        except TransferTimeout:
            if any(self._streams[peer].proved < step for peer in copies):
                raise  # else it was proved in the very moment

    async def _ship_to(
        self,
        peer: Worker,
        step: int,
        copies: Sequence[Copy],
        gate: LayerGate | None,
        after: Sequence[Fence],
    ) -> None:
        stream = self._streams[peer]
        offer = stream.offer
        wire = self._setups.wire
        for item in by_layer(list(items(copies, wire, offer.grouping, offer.max_parcel_bytes))):
            fences = [*after]
            if gate is not None:
                fences += await gate.wait(item.last_layer)
            await self._ship_item(stream, step, item, fences)
        await stream.commit(step, outline_of(copies))

    async def _ship_item(
        self, stream: OutStream, step: int, item: Item, after: Sequence[Fence]
    ) -> None:
        cache = self._caches[item.copies[0].source_batch]
        boxes = [copy.source_box for copy in item.copies]
        found = pack_all(cache.layout, boxes, cache.table, self._setups.wire)
        if self._mode is Mode.NAIVE:
            await self._ship_runs(stream, step, item, cache, found, after)
            return
        if self._kit.reaches_device and is_direct(found):
            for fence in after:
                await fence.done()
            sent = stream.ship(step, item.index, 0, own_regions(cache, found)).sent
        else:
            pack = self._kit.device.pack
            fill = partial(pack, source=cache.region, blocks=found.blocks, after=after)
            staging = await self._staged(item.nbytes, fill)
            regions = split(found, staging.region)
            self._kit.counters.copies_out += len(regions)
            sent = stream.ship(step, item.index, 0, regions, staging.release).sent
        self._record("packed", step, item)
        sent.add_done_callback(lambda _: self._record("sent", step, item))

    async def _staged(self, nbytes: int, fill: Callable[[Region], Fence]) -> Staging:
        """Staging that ``fill`` has filled."""
        staging = await self._kit.staging.lease(nbytes)
        try:
            await finish(fill(staging.region))
        except BaseException:
            staging.release()
            raise
        return staging

    async def _ship_runs(
        self,
        stream: OutStream,
        step: int,
        item: Item,
        cache: Cache,
        found: Packing,
        after: Sequence[Fence],
    ) -> None:
        """The paper's baseline: a copy and a transfer for each contiguous run, one by one."""
        for offset, place, nbytes in pieces(found):
            source = cache.region.part(offset, nbytes)
            copy = partial(self._kit.device.copy_out, source=source, after=after)
            staging = await self._staged(nbytes, copy)
            self._kit.counters.copies_out += 1
            sent = stream.ship(step, item.index, place, [staging.region], staging.release).sent
            await asyncio.shield(sent)
        self._record("sent", step, item)

    def _record(self, kind: str, step: int, item: Item) -> None:
        self._kit.record(kind, self._name, step, index=item.index, layer=item.last_layer)

    @property
    def lost(self) -> tuple[Worker, ...]:
        """The peers whose stream has ended."""
        return tuple(peer for peer, stream in self._streams.items() if stream.is_broken)

    async def resume(self, links: Mapping[Worker, Link], *, deadline_s: float | None) -> None:
        """Offer the streams to these peers again, on new links; they go on where they were proved.

        Returns when the peers, which must ``resume`` too, have accepted; nothing of the former
        streams reads the caches then. Ship the step that failed once more: peers that have it
        already are sent nothing. Raises PeerLost, TransferTimeout.
        """
        async with deadline(deadline_s, f"resuming stream {self._name}"):
            for peer, link in links.items():
                former = self._streams[peer]
                await former.cancel("the stream goes on in a new incarnation")
                name, epoch = former.key
                self._streams[peer] = await open_out(
                    link,
                    name,
                    epoch=epoch,
                    grouping=former.offer.grouping,
                    max_parcel_bytes=former.offer.max_parcel_bytes,
                    terms=former.offer.terms,
                    deadline_s=None,
                )

    async def cancel(self, reason: str = "cancelled") -> None:
        """End every stream; returns when nothing reads the caches any more."""
        await asyncio.gather(*(stream.cancel(reason) for stream in self._streams.values()))

    async def cancel_unproved(self, step: int, reason: str) -> None:
        """End the streams to the peers that have not proved ``step``, as ``cancel`` does."""
        unproved = [stream for stream in self._streams.values() if stream.proved < step]
        await asyncio.gather(*(stream.cancel(reason) for stream in unproved))

    def close(self) -> None:
        """Everything shipped was proved and nothing follows."""
        for stream in self._streams.values():
            stream.close()


async def open_outflow(
    kit: Kit,
    name: str,
    setups: Setups,
    me: Worker,
    caches: Sequence[Cache],
    links: Mapping[Worker, Link],
    *,
    deadline_s: float | None,
    epoch: int = 0,
    mode: Mode = Mode.LAYERED,
    grouping: Grouping = Grouping.LAYERS,
) -> Outflow:
    """Offer a stream to every peer that the set-ups imply, and wait until all accept.

    Raises Corrupted where a peer's ``wire`` differs or a link leads to another worker, PeerLost,
    TransferTimeout.
    """
    peers = peers_of_source(setups.source, setups.target, me)
    opened: dict[Worker, OutStream] = {}
    outflow = Outflow(kit, name, setups, me, caches, mode, opened)
    try:
        async with deadline(deadline_s, f"opening stream {name}"):
            for peer in peers:
                opened[peer] = await open_out(
                    links[peer],
                    name,
                    epoch=epoch,
                    grouping=grouping,
                    terms=terms_of(setups, me, peer),
                    deadline_s=None,
                )
    except BaseException:
        await outflow.cancel()
        raise
    return outflow
