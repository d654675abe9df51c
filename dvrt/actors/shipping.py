"""A whole log from whoever keeps a copy of it, as Entries and the Commit that ends them."""

from __future__ import annotations

from dvrt.actors.messages import Commit, Entries, LogRange
from dvrt.actors.ref import ActorRef
from dvrt.buffers import Region
from dvrt.kv.digest import Tally, digest_of

PIECE_BYTES = 1 << 20


async def ship_log(
    to: ActorRef,
    wanted: LogRange,
    data: bytearray,
    *,
    layers: tuple[int, int],
    entry_bytes: int,
    sender: str,
) -> int:
    """Ship all entries in ``data``, from position 0 on; how many. Raises as ``tell`` does."""
    first, last = layers
    length, tally = len(data) // entry_bytes, Tally()
    most = max(1, PIECE_BYTES // entry_bytes)
    for start in range(0, length, most):
        stop = min(start + most, length)
        part = data[start * entry_bytes : stop * entry_bytes]
        digest, index = digest_of([part]), len(tally)
        tally.add(index, nbytes=len(part), digest=digest)
        note = Entries(
            slot=wanted.slot,
            seq=wanted.seq,
            epoch=wanted.epoch,
            first=first,
            last=last,
            start=start,
            stop=stop,
            sender=sender,
            index=index,
            digest=digest,
        )
        await to.tell(note, Region.of(part))
    total = tally.sum()
    await to.tell(
        Commit(
            slot=wanted.slot,
            seq=wanted.seq,
            epoch=wanted.epoch,
            first=first,
            last=last,
            length=length,
            sender=sender,
            chunks=total.chunks,
            nbytes=total.nbytes,
            digest=total.digest,
        )
    )
    return length


def until(wanted: LogRange, length: int) -> LogRange:
    """What was wanted, as far as it was sent."""
    return LogRange(slot=wanted.slot, seq=wanted.seq, epoch=wanted.epoch, start=0, stop=length)
