"""``scatter`` and ``gather``: a non-contiguous region as few contiguous moves.

    scatter   a box of a cache -> packed host memory, or -> the peer at the end of a channel
    gather    packed host memory, or what the peer scattered -> a box of a cache

Packed: all keys of the box, then all its values, in the order of a layout, its own by default.
"""

from __future__ import annotations

from collections.abc import Sequence

from dvrt.buffers import Region
from dvrt.cuda.fences import Fence
from dvrt.kv.layout import Layout
from dvrt.kv.regions import Box
from dvrt.streaming.cache import Cache
from dvrt.streaming.contiguous import Chunk, Place, cut, deadline, finish, receive, send
from dvrt.streaming.kit import Kit
from dvrt.streaming.parcels import Packing, is_direct, packing, pieces


async def scatter(
    kit: Kit,
    cache: Cache,
    box: Box | Packing,
    target: Place,
    *,
    deadline_s: float | None,
    wire: Layout | None = None,
    tag: str = "",
    after: Sequence[Fence] = (),
) -> None:
    """Move a box, or what a ``Batch`` has at some spots, out; then the cache may be overwritten.

    ``wire`` is the receiver's layout; where the peer unpacks another one, or another shape, it is
    refused there. Errors and cancellation as in ``flush``.
    """
    found = _found(cache, box, wire)
    async with deadline(deadline_s, "a scatter"):
        if isinstance(target, Region):
            await _pack(kit, cache, found, target, after)
            return
        if kit.reaches_device and is_direct(found):
            for fence in after:
                await fence.done()
            await send(kit, target, _chunk(tag, found), own_regions(cache, found))
            return
        with await kit.staging.lease(found.nbytes) as staging:
            await _pack(kit, cache, found, staging.region, after)
            await send(kit, target, _chunk(tag, found), split(found, staging.region))


async def gather(
    kit: Kit,
    cache: Cache,
    box: Box | Packing,
    source: Place,
    *,
    deadline_s: float | None,
    wire: Layout | None = None,
    tag: str = "",
    after: Sequence[Fence] = (),
) -> None:
    """Fill a box, or the spots of a ``Batch``; then the bytes are there and their digest is right.

    ``wire`` is the layout in whose order the bytes come. Errors and cancellation as in ``fetch``;
    Corrupted, too, where a peer scattered in another order, shape or type of elements.
    """
    found = _found(cache, box, wire)
    async with deadline(deadline_s, "a gather"):
        if isinstance(source, Region):
            await _unpack(kit, cache, found, source, after)
            return
        with await kit.landing.lease(found.nbytes) as staging:
            await receive(kit, source, _chunk(tag, found), staging.region)
            await _unpack(kit, cache, found, staging.region, after)


def _chunk(tag: str, found: Packing) -> Chunk:
    return Chunk(tag=tag, wire=found.wire, dtype=found.dtype)


def _found(cache: Cache, box: Box | Packing, wire: Layout | None) -> Packing:
    if isinstance(box, Packing):
        return box
    return packing(cache.layout, box, cache.table, wire or cache.layout)


async def _pack(
    kit: Kit, cache: Cache, found: Packing, target: Region, after: Sequence[Fence]
) -> None:
    _ensure_size(found, target)
    await finish(kit.device.pack(target, cache.region, found.blocks, after=after))
    kit.counters.copies_out += len(found.parts)


async def _unpack(
    kit: Kit, cache: Cache, found: Packing, source: Region, after: Sequence[Fence]
) -> None:
    _ensure_size(found, source)
    await finish(kit.device.unpack(cache.region, source, found.unpacking, after=after))
    kit.counters.copies_in += len(found.parts)


def _ensure_size(found: Packing, region: Region) -> None:
    if region.nbytes != found.nbytes:
        raise ValueError(f"a box of {found.nbytes} bytes, packed in {region.nbytes}")


def split(found: Packing, region: Region) -> list[Region]:
    """The contiguous moves that a packed form is sent as."""
    return cut(region, found.parts)


def own_regions(cache: Cache, found: Packing) -> list[Region]:
    """The pieces of the box in the cache itself, in packed order."""
    return [cache.region.part(offset, nbytes) for offset, _, nbytes in pieces(found)]
