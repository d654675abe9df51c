"""Records of an append-only file: found whole, or found to be torn. Pure but for reading.

magic 4 | zero 4 | bytes that follow 8 | xxh3-64 of those 8 | frame head | regions
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

from dvrt.errors import Corrupted
from dvrt.transport.framing import PREFIX_BYTES, pack_head, unpack_body, unpack_prefix

_LEAD = struct.Struct("!4sIQQ")
LEAD_BYTES = _LEAD.size
_MAGIC = b"dvlg"
_SCAN_BYTES = 1 << 20


class Record(NamedTuple):
    """Where one record's parts lie in the file."""

    header: bytes
    sizes: tuple[int, ...]
    regions_at: int
    end: int


def pack_record(header: bytes, views: list[memoryview]) -> bytes:
    """The bytes before the regions."""
    head = pack_head(header, [view.nbytes for view in views])
    size = len(head) + sum([view.nbytes for view in views])
    return _LEAD.pack(_MAGIC, 0, size, _digest([head, *views])) + head


def _digest(parts: Iterable[bytes | memoryview]) -> int:
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def read_record(fd: int, position: int, file_end: int) -> Record | None:
    """The record at ``position``, its digest not checked; None at the end of the file.

    Raises Corrupted for what is no record, or one that the file does not hold all of.
    """
    if position == file_end:
        return None
    lead = os.pread(fd, LEAD_BYTES, position)
    if len(lead) < LEAD_BYTES:
        raise Corrupted("lead of a record", expected=LEAD_BYTES, got=len(lead))
    magic, zero, size, _ = _LEAD.unpack(lead)
    head_at, end = position + LEAD_BYTES, position + LEAD_BYTES + size
    if magic != _MAGIC or zero:
        raise Corrupted("magic of a record", expected=_MAGIC, got=magic)
    if end > file_end or size < PREFIX_BYTES:
        raise Corrupted("end of a record", expected=f"<= {file_end}", got=end)
    prefix = unpack_prefix(os.pread(fd, PREFIX_BYTES, head_at))
    body_at = head_at + PREFIX_BYTES
    if body_at + prefix.body_bytes > end:
        raise Corrupted("head of a record", expected=f"<= {end}", got=body_at + prefix.body_bytes)
    header, sizes = unpack_body(prefix, os.pread(fd, prefix.body_bytes, body_at))
    regions_at = body_at + prefix.body_bytes
    if regions_at + sum(sizes) != end:
        raise Corrupted("size of a record", expected=end - regions_at, got=sum(sizes))
    return Record(header, sizes, regions_at, end)


def check_record(fd: int, position: int, record: Record) -> None:
    """Raise Corrupted when the bytes of the record are not those that were written."""
    expected = _LEAD.unpack(os.pread(fd, LEAD_BYTES, position))[3]
    digest, at = xxhash.xxh3_64(), position + LEAD_BYTES
    while at < record.end:
        data = os.pread(fd, min(_SCAN_BYTES, record.end - at), at)
        digest.update(data)
        at += len(data) or record.end
    if digest.intdigest() != expected:
        raise Corrupted("digest of a record", expected=expected, got=digest.intdigest())


def whole_until(fd: int, file_end: int) -> int:
    """The end of the last whole record that follows only whole ones."""
    position = 0
    while (record := _whole_record(fd, position, file_end)) is not None:
        position = record.end
    return position


def _whole_record(fd: int, position: int, file_end: int) -> Record | None:
    """The record at ``position`` if it is all that was written; None for anything else."""
    try:
        record = read_record(fd, position, file_end)
        if record is not None:
            check_record(fd, position, record)
    except Corrupted:
        return None
    return record


def next_whole(fd: int, position: int, file_end: int) -> int | None:
    """Where the first whole record begins at or behind ``position``, whatever lies between."""
    while position + LEAD_BYTES <= file_end:
        data = os.pread(fd, min(_SCAN_BYTES, file_end - position), position)
        found = data.find(_MAGIC)
        while found >= 0:
            if _whole_record(fd, position + found, file_end) is not None:
                return position + found
            found = data.find(_MAGIC, found + 1)
        if len(data) < len(_MAGIC):
            return None
        # A magic may begin in this piece and end in the next.
        position += len(data) - len(_MAGIC) + 1
    return None
