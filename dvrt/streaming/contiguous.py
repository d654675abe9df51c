"""``flush`` and ``fetch``: one contiguous chunk, to here or there.

    flush   device memory -> host memory, or any memory -> the peer at the end of a channel
    fetch   host memory -> device memory, or what the peer flushed -> any memory

While it runs, a remote flush (fetch) is the only sender (receiver) of its channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from dvrt.buffers import MemoryKind, Region
from dvrt.cuda.fences import Fence
from dvrt.errors import ChannelBusy, Corrupted, TransferTimeout
from dvrt.kv.digest import digest_of
from dvrt.streaming.headers import pack, unpack
from dvrt.streaming.kit import Kit
from dvrt.streaming.terms import ensure_same, ensure_same_dtype
from dvrt.transport import Channel
from dvrt.wire import message

Place = Region | Channel
"""Memory of this process, or the peer of a channel."""


@message("stream.chunk", version=2)
class Chunk:
    """Bytes that travel as one message; ``tag`` is the caller's, ``digest`` 0: not computed.

    ``wire`` says what lies where, ``dtype`` of what type; each is compared where both ends say it.
    """

    tag: str
    digest: int = 0
    wire: str = ""
    dtype: str = ""


@asynccontextmanager
async def deadline(seconds: float | None, what: str) -> AsyncIterator[None]:
    """Turns the block's time-out into TransferTimeout."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise TransferTimeout(f"{what} was not over by its deadline") from None


async def all_through(works: Iterable[Awaitable[None]]) -> None:
    """Each to its end, whatever becomes of the others; then the first error is raised."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await it although this task is cancelled meanwhile, however often; that is raised then."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


async def flush(
    kit: Kit,
    source: Region,
    target: Place,
    *,
    deadline_s: float | None,
    tag: str = "",
    after: Sequence[Fence] = (),
) -> None:
    """Move the whole of ``source``; returns when its memory may be reused.

    Raises as the channel does, TransferTimeout, and ValueError where sizes differ. Cancelled or
    late, it returns only when nothing reads the source any more; a channel in use is then broken.
    """
    async with deadline(deadline_s, "a flush"):
        if isinstance(target, Region):
            await finish(kit.device.copy_out(target, source, after=after))
            kit.counters.copies_out += 1
            return
        if source.kind is not MemoryKind.CUDA:
            for fence in after:
                await fence.done()
            await send(kit, target, Chunk(tag=tag), [source])
            return
        with await kit.staging.lease(source.nbytes) as staging:
            await finish(kit.device.copy_out(staging.region, source, after=after))
            kit.counters.copies_out += 1
            await send(kit, target, Chunk(tag=tag), [staging.region])


async def fetch(
    kit: Kit,
    target: Region,
    source: Place,
    *,
    deadline_s: float | None,
    tag: str = "",
    after: Sequence[Fence] = (),
) -> None:
    """Fill the whole of ``target``; returns when the bytes are there and their digest is right.

    Raises as the channel does, TransferTimeout, and Corrupted for another tag, size or digest, and
    where the kit checks digests and there is none.
    Cancelled or late, it returns only when nothing writes to the target any more; a channel in the
    middle of a message is then broken.
    """
    async with deadline(deadline_s, "a fetch"):
        if isinstance(source, Region):
            await finish(kit.device.copy_in(target, source, after=after))
            kit.counters.copies_in += 1
            return
        if target.kind is not MemoryKind.CUDA:
            for fence in after:
                await fence.done()
            await receive(kit, source, Chunk(tag=tag), target)
            return
        with await kit.landing.lease(target.nbytes) as staging:
            await receive(kit, source, Chunk(tag=tag), staging.region)
            await finish(kit.device.copy_in(target, staging.region, after=after))
            kit.counters.copies_in += 1


async def finish(fence: Fence) -> None:
    """Wait for a copy. Cancelled, it still waits: until then the copy touches its memory."""
    try:
        await fence.done()
    except asyncio.CancelledError:
        while not fence.is_done:
            with suppress(asyncio.CancelledError):
                await fence.ended()
        raise


async def send(kit: Kit, channel: Channel, chunk: Chunk, regions: Sequence[Region]) -> None:
    """One message of these regions. Cut short, it returns when the channel reads them no more."""
    digest = digest_of(region.view() for region in regions) if kit.is_verified else 0
    try:
        await channel.send(pack(replace(chunk, digest=digest)), *regions)
    except (ChannelBusy, ValueError, TypeError):
        raise  # refused: nothing moved, nothing broke
    except BaseException:
        channel.abort()
        await to_its_end(channel.quiet())
        raise
    kit.counters.parcels_sent += 1
    kit.counters.bytes_sent += sum(region.nbytes for region in regions)


async def receive(kit: Kit, channel: Channel, expected: Chunk, target: Region) -> None:
    """One message into this memory. Raises Corrupted unless it is what was expected."""
    incoming = await channel.receive()
    try:
        chunk = unpack(incoming.header)
        _ensure_expected(chunk, expected, sum(incoming.sizes), target.nbytes)
        if kit.is_verified and not chunk.digest:
            raise Corrupted(f"digest of chunk {chunk.tag!r}", expected="one", got="none")
        await incoming.into(*cut(target, incoming.sizes))
    except BaseException:
        channel.abort()
        await to_its_end(channel.quiet())
        raise
    got = digest_of([target.view()]) if chunk.digest else 0
    if got != chunk.digest:
        kit.counters.corrupted_parcels += 1
        raise Corrupted(f"digest of chunk {chunk.tag!r}", expected=chunk.digest, got=got)
    kit.counters.parcels_received += 1
    kit.counters.bytes_received += target.nbytes


def cut(region: Region, sizes: Sequence[int]) -> list[Region]:
    """Neighbouring parts of these sizes."""
    found, start = [], 0
    for size in sizes:
        found.append(region.part(start, size))
        start += size
    return found


def _ensure_expected(chunk: object, expected: Chunk, nbytes: int, expected_bytes: int) -> None:
    if not isinstance(chunk, Chunk):
        raise Corrupted("message", expected="a chunk", got=type(chunk).__name__)
    ensure_same("tag of a chunk", expected.tag, chunk.tag)
    ensure_same_dtype(f"dtype of chunk {chunk.tag!r}", expected.dtype, chunk.dtype)
    if expected.wire and chunk.wire:
        ensure_same(f"wire of chunk {chunk.tag!r}", expected.wire, chunk.wire)
    ensure_same(f"bytes of chunk {chunk.tag!r}", expected_bytes, nbytes)
