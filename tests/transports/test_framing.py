"""Frame heads: exact round trips, and every kind of rubbish named."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dvrt.errors import Corrupted
from dvrt.transport.base import MAX_HEADER_BYTES, MAX_REGION_BYTES, MAX_REGIONS, Limits
from dvrt.transport.framing import (
    MAGIC,
    PREFIX_BYTES,
    VERSION,
    FrameKind,
    pack_head,
    unpack_body,
    unpack_prefix,
)
from dvrt.transport.staging import Staging


def prefix(*, magic=MAGIC, version=VERSION, kind=1, zero=0, regions=0, header_bytes=0) -> bytes:
    return struct.pack("!4sBBHII", magic, version, kind, zero, regions, header_bytes)


@given(some.binary(max_size=300), some.lists(some.integers(0, 1 << 30), max_size=20))
def test_round_trip(header, sizes):
    head = pack_head(header, sizes)
    found = unpack_prefix(head)
    assert len(head) == PREFIX_BYTES + found.body_bytes
    assert unpack_body(found, head, PREFIX_BYTES) == (header, tuple(sizes))


@given(some.binary(min_size=PREFIX_BYTES, max_size=64))
def test_random_bytes_are_refused(data):
    if data[:4] != MAGIC:
        with pytest.raises(Corrupted, match="magic"):
            unpack_prefix(data)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (prefix(version=2), "frame version: expected 1, got 2"),
        (prefix(kind=9), "frame kind"),
        (prefix(zero=1), "frame kind"),
        (prefix(header_bytes=MAX_HEADER_BYTES + 1), "oversized frame, header bytes"),
        (prefix(regions=MAX_REGIONS + 1), "oversized frame, regions"),
        (prefix(regions=1) + struct.pack("!Q", MAX_REGION_BYTES + 1), "region bytes"),
        (prefix(regions=2) + struct.pack("!QQ", *[1 << 63] * 2), "region bytes"),
    ],
)
def test_what_is_wrong_is_named(head, what):
    staging = Staging(1024)
    staging.room()[: len(head)] = head
    staging.added(len(head))
    with pytest.raises(Corrupted, match=what):
        staging.head(Limits())


def test_a_claimed_length_reserves_nothing():
    staging = Staging(64)
    head = prefix(header_bytes=MAX_HEADER_BYTES)
    staging.room()[: len(head)] = head
    staging.added(len(head))
    assert staging.head(Limits()) is None
    assert len(staging.room()) < 64


@given(some.lists(some.integers(1, 200), min_size=1, max_size=60), some.integers(0, 500))
def test_heads_arrive_in_pieces_of_any_size(pieces, long_header):
    headers = [b"a" * long_header, b"", b"b" * 70]
    wire = b"".join(pack_head(header, ()) for header in headers)
    staging, got, start = Staging(64), [], 0
    for piece in [*pieces * len(wire), 0]:
        while (head := staging.head(Limits())) is not None:
            assert head[0].kind == FrameKind.MESSAGE
            got.append(head[1])
        if start == len(wire):
            break
        room = staging.room()
        count = min(piece, len(room), len(wire) - start)
        room[:count] = wire[start : start + count]
        staging.added(count)
        start += count
    assert got == headers
