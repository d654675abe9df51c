"""The head of a frame: what is said before any region's bytes travel. Pure, no I/O.

    magic 4 | version 1 | kind 1 | zero 2 | regions 4 | header bytes 4 | sizes 8 each | header

Big-endian. Everything is checked against limits before memory of a claimed size is reserved.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from dvrt.errors import Corrupted
from dvrt.transport.base import DEFAULT_LIMITS, Limits

MAGIC = b"dvrt"
VERSION = 1
_PREFIX = struct.Struct("!4sBBHII")
PREFIX_BYTES = _PREFIX.size

Buffer = bytes | bytearray | memoryview


class FrameKind(IntEnum):
    MESSAGE = 1
    GOODBYE = 2


_KINDS = frozenset(int(kind) for kind in FrameKind)


class Prefix(NamedTuple):
    """The fixed part of a head, checked."""

    kind: int
    region_count: int
    header_bytes: int

    @property
    def body_bytes(self) -> int:
        """Bytes of sizes and header that follow the prefix."""
        return 8 * self.region_count + self.header_bytes


def pack_head(header: bytes, sizes: Sequence[int], kind: FrameKind = FrameKind.MESSAGE) -> bytes:
    """The bytes before the regions, whose limits ``check_message`` has held."""
    count = len(sizes)
    prefix = _PREFIX.pack(MAGIC, VERSION, int(kind), 0, count, len(header))
    if not count:
        return prefix + header
    return b"".join((prefix, struct.pack(f"!{count}Q", *sizes), header))


def unpack_prefix(buffer: Buffer, offset: int = 0, limits: Limits = DEFAULT_LIMITS) -> Prefix:
    """The checked prefix at ``offset``. Raises Corrupted naming the field that is wrong."""
    magic, version, kind, zero, count, header_bytes = _PREFIX.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise Corrupted("not a frame of this protocol, magic", expected=MAGIC, got=magic)
    if version != VERSION:
        raise Corrupted("frame version", expected=VERSION, got=version)
    if zero or kind not in _KINDS:
        raise Corrupted("frame kind", expected=sorted(_KINDS), got=(kind, zero))
    if header_bytes > limits.max_header_bytes or count > limits.max_regions:
        check_limits(limits, header_bytes=header_bytes, region_count=count)
    return Prefix(kind, count, header_bytes)


def unpack_body(
    prefix: Prefix, buffer: Buffer, offset: int = 0, limits: Limits = DEFAULT_LIMITS
) -> tuple[bytes, tuple[int, ...]]:
    """Header and region sizes of ``prefix``, whose body starts at ``offset``. Raises Corrupted."""
    count = prefix.region_count
    start = offset + 8 * count
    header = bytes(buffer[start : start + prefix.header_bytes])
    if not count:
        return header, ()
    sizes: tuple[int, ...] = struct.unpack_from(f"!{count}Q", buffer, offset)
    check_limits(limits, region_bytes=sum(sizes))
    return header, sizes


def check_limits(
    limits: Limits, *, header_bytes: int = 0, region_count: int = 0, region_bytes: int = 0
) -> None:
    """Raise Corrupted when a frame claims more than this receiver accepts."""
    for what, got, limit in (
        ("header bytes", header_bytes, limits.max_header_bytes),
        ("regions", region_count, limits.max_regions),
        ("region bytes", region_bytes, limits.max_region_bytes),
    ):
        if got > limit:
            raise Corrupted(f"oversized frame, {what}", expected=f"<= {limit}", got=got)
