"""``stream_out`` and ``stream_in``: what two set-ups imply, found and moved.

Both ends make the same plan from the same two sides, so no message says where bytes belong.
Layers, rows and heads are split and merged on the way; a commit record proves the whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from dvrt.cuda.fences import Fence
from dvrt.kv.plan import Tokens, Worker
from dvrt.streaming.cache import Cache
from dvrt.streaming.inflow import Arrived, open_inflow
from dvrt.streaming.kit import Kit
from dvrt.streaming.link import Link
from dvrt.streaming.messages import Grouping
from dvrt.streaming.modes import LayerGate, Mode
from dvrt.streaming.outflow import open_outflow
from dvrt.streaming.setups import Setups


async def stream_out(
    kit: Kit,
    name: str,
    setups: Setups,
    me: Worker,
    caches: Sequence[Cache],
    links: Mapping[Worker, Link],
    tokens: Tokens,
    *,
    deadline_s: float | None,
    epoch: int = 0,
    mode: Mode = Mode.LAYERED,
    grouping: Grouping = Grouping.LAYERS,
    gate: LayerGate | None = None,
    after: Sequence[Fence] = (),
) -> None:
    """Send this worker's share to every peer; returns when all have proved what they got.

    ``caches`` are the worker's microbatches, ``links`` lead to the target's workers. Whatever
    ends it early (cancelling, the deadline, PeerLost, Corrupted), it returns only when nothing
    reads the caches any more.
    """
    outflow = await open_outflow(
        kit,
        name,
        setups,
        me,
        caches,
        links,
        deadline_s=deadline_s,
        epoch=epoch,
        mode=mode,
        grouping=grouping,
    )
    try:
        await outflow.ship(0, tokens, deadline_s=deadline_s, gate=gate, after=after)
    except BaseException as error:
        await outflow.cancel(str(error) or type(error).__name__)
        raise
    outflow.close()


async def stream_in(
    kit: Kit,
    name: str,
    setups: Setups,
    me: Worker,
    caches: Sequence[Cache],
    links: Mapping[Worker, Link],
    tokens: Tokens,
    *,
    deadline_s: float | None,
    epoch: int = 0,
) -> AsyncGenerator[Arrived, None]:
    """Receive this worker's share; yields each box, a layer as a rule, once it is in its place.

    Only when the iteration has ended may the bytes be used: then the commit records agree with
    what came. ``links`` lead to the source's workers. Whatever ends it early (leaving the
    iteration included; use ``contextlib.aclosing``), it ends only when nothing can write to the
    caches any more. Raises Corrupted, PeerLost, TransferTimeout.
    """
    inflow = open_inflow(kit, name, setups, me, caches, links, epoch=epoch)
    try:
        async with aclosing(inflow.take(0, tokens, deadline_s=deadline_s)) as boxes:
            async for box in boxes:
                yield box
    except BaseException as error:
        await inflow.cancel(str(error) or type(error).__name__)
        raise
    inflow.close()
