"""A log on its way to a holder: Entries in pieces, and the Commit that ends them."""

from __future__ import annotations

from dataclasses import dataclass, field

from dvrt.actors.ref import ActorRef
from dvrt.buffers import Region
from dvrt.kv.digest import Tally, digest_of
from dvrt.protocol.messages import Commit, Entries, LogRange

PIECE_BYTES = 1 << 20


@dataclass(slots=True, kw_only=True)
class LogStream:
    """What one holder has been sent of one log, and the messages that say so."""

    slot: int
    seq: int
    epoch: int
    sender: str
    is_broken: bool = False
    _tally: Tally = field(default_factory=Tally)

    def entries(self, layers: tuple[int, int], start: int, stop: int, region: Region) -> Entries:
        """The next piece, which counts as sent: positions [start, stop), whose bytes these are."""
        digest, index = digest_of([region.view()]), len(self._tally)
        self._tally.add(index, nbytes=region.nbytes, digest=digest)
        return Entries(
            slot=self.slot,
            seq=self.seq,
            epoch=self.epoch,
            first=layers[0],
            last=layers[1],
            start=start,
            stop=stop,
            sender=self.sender,
            index=index,
            digest=digest,
        )

    def commit(self, layers: tuple[int, int], length: int) -> Commit:
        """All of [0, length) in these layers was sent, in as many pieces as there were."""
        total = self._tally.sum()
        return Commit(
            slot=self.slot,
            seq=self.seq,
            epoch=self.epoch,
            first=layers[0],
            last=layers[1],
            length=length,
            sender=self.sender,
            chunks=total.chunks,
            nbytes=total.nbytes,
            digest=total.digest,
        )


async def ship_log(
    to: ActorRef,
    wanted: LogRange,
    data: bytearray,
    *,
    layers: tuple[int, int],
    entry_bytes: int,
    sender: str,
) -> LogRange:
    """Ship all entries in ``data``, from position 0 on; what was sent. Raises as ``tell`` does."""
    stream = LogStream(slot=wanted.slot, seq=wanted.seq, epoch=wanted.epoch, sender=sender)
    length = len(data) // entry_bytes
    most = max(1, PIECE_BYTES // entry_bytes)
    for start in range(0, length, most):
        stop = min(start + most, length)
        region = Region.of(data[start * entry_bytes : stop * entry_bytes])
        await to.tell(stream.entries(layers, start, stop, region), region)
    await to.tell(stream.commit(layers, length))
    return LogRange(slot=wanted.slot, seq=wanted.seq, epoch=wanted.epoch, start=0, stop=length)
