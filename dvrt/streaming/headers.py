"""Headers of messages as bytes: encoded, with a checksum behind them that is looked at first.

Digests protect the bytes of KV; without this, one inverted bit of a grant or of a proof would tell
a sender that what it never sent is stored.
"""

from __future__ import annotations

import zlib
from typing import Any

from dvrt.errors import Corrupted
from dvrt.wire import decode, encode

SUM_BYTES = 4


def pack(message: object) -> bytes:
    """The message, and the CRC-32 of it. Raises WireError as ``encode``."""
    data = encode(message)
    return data + sum_of(data)


def unpack(header: bytes) -> Any:
    """What was packed. Raises Corrupted unless it is that, bit by bit; WireError as ``decode``."""
    data, stated = header[:-SUM_BYTES], header[-SUM_BYTES:]
    got = sum_of(data)
    if got != stated:
        raise Corrupted("checksum of a header", expected=stated.hex(), got=got.hex())
    return decode(data)


def sum_of(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(SUM_BYTES, "big")
