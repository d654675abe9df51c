"""What two ends of a ``ucx://`` channel say of themselves when it is opened. Pure but for `/proc`.

magic 4 | version 1 | zero 1 | UCX version 3 x 2 | channel 4 | pid 4 | host 16 | xxh3-64 of the
address 8 | its size 4 | address of the UCX worker
"""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import xxhash

from dvrt.errors import Corrupted

_FIXED = struct.Struct("!4sBB3HII16sQI")
FIXED_BYTES = _FIXED.size
MAX_ADDRESS_BYTES = 16 << 10
_MAGIC, _VERSION = b"dvux", 1


@functools.cache
def this_host() -> bytes:
    """Names this kernel and its space of process ids; reads files, so call it in a thread."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    where = f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    return xxhash.xxh3_128_digest(where.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """One end: its UCX worker, the number of the channel there, and where it runs."""

    ucx_version: tuple[int, int, int]
    channel: int
    pid: int
    host: bytes
    address: bytes

    def pack(self) -> bytes:
        digest = xxhash.xxh3_64_intdigest(self.address)
        return (
            _FIXED.pack(
                *(_MAGIC, _VERSION, 0, *self.ucx_version, self.channel, self.pid),
                *(self.host, digest, len(self.address)),
            )
            + self.address
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The fixed part of a set-up, checked; ``address_bytes`` more belong to it."""

    ucx_version: tuple[int, int, int]
    channel: int
    pid: int
    host: bytes
    digest: int
    address_bytes: int

    @classmethod
    def unpack(cls, data: bytes, *, ours: SetUp) -> Announced:
        """Raises Corrupted for what is no set-up, or one of a UCX that is not like ``ours``."""
        magic, version, zero, *ucx, channel, pid, host, digest, size = _FIXED.unpack(data)
        if (magic, version, zero) != (_MAGIC, _VERSION, 0):
            raise Corrupted(
                "set-up of a channel", expected=(_MAGIC, _VERSION, 0), got=(magic, version, zero)
            )
        if tuple(ucx[:2]) != ours.ucx_version[:2]:
            raise Corrupted("UCX version", expected=ours.ucx_version, got=tuple(ucx))
        if not 0 < size <= MAX_ADDRESS_BYTES:
            raise Corrupted(
                "size of a worker's address", expected=f"1 to {MAX_ADDRESS_BYTES}", got=size
            )
        return cls(
            ucx_version=(ucx[0], ucx[1], ucx[2]),
            channel=channel,
            pid=pid,
            host=host,
            digest=digest,
            address_bytes=size,
        )

    def complete(self, address: bytes) -> SetUp:
        """The whole set-up. Raises Corrupted when the address is not the one announced."""
        digest = xxhash.xxh3_64_intdigest(address)
        if digest != self.digest:
            raise Corrupted("digest of a worker's address", expected=self.digest, got=digest)
        return SetUp(
            ucx_version=self.ucx_version,
            channel=self.channel,
            pid=self.pid,
            host=self.host,
            address=address,
        )
