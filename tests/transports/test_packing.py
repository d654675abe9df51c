"""Regions and one buffer: whatever the regions look like and however they are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dvrt.buffers import Region
from dvrt.transport.packing import MIN_ROWS, Parts, Pieces, pack, unpack


def rows_of(array: np.ndarray, size: int, step: int, count: int) -> list[Region]:
    return [Region.of(array[i * step : i * step + size]) for i in range(count)]


@given(
    some.integers(1, 40),
    some.integers(0, 9),
    some.integers(1, 2 * MIN_ROWS),
    some.sampled_from(["equal", "one longer", "one moved", "backwards", "read-only"]),
    some.data(),
)
def test_regions_are_copied_piece_by_piece(size, gap, count, how, data):
    memory = np.arange(4096, dtype=np.uint32).view(np.uint8).copy()
    regions = rows_of(memory, size, size + gap, count)
    if how == "one longer":
        regions[-1] = Region.of(memory[-size - 1 :])
    elif how == "one moved":
        regions[count // 2] = Region.of(memory[-size:])
    elif how == "backwards":
        regions.reverse()
    elif how == "read-only":
        regions = [Region.of(bytes(region.view())) for region in regions]
    sizes = [region.nbytes for region in regions]
    wanted = b"".join(bytes(region.view()) for region in regions)
    target = bytearray(len(wanted))
    pieces = Pieces(regions, sizes)
    at = 0
    while pieces.nbytes:
        piece = pieces.size(data.draw(some.integers(1, 3 * size)))
        piece = data.draw(some.sampled_from([piece, 1]))
        pieces.copy_to(memoryview(target)[at : at + piece])
        at += piece
    assert bytes(target) == wanted
    if how != "read-only":
        check_return(regions, sizes, wanted[::-1], data)


def check_return(regions, sizes, content: bytes, data) -> None:
    pieces, at = Pieces(regions, sizes), 0
    while pieces.nbytes:
        piece = data.draw(some.integers(1, pieces.nbytes))
        pieces.copy_from(memoryview(content)[at : at + piece])
        at += piece
    assert b"".join(bytes(region.view()) for region in regions) == content


@given(some.lists(some.binary(max_size=3 * MIN_ROWS), min_size=1, max_size=2 * MIN_ROWS))
def test_regions_fill_one_buffer(parts):
    regions = [Region.of(part) for part in parts]
    target = bytearray(sum(map(len, parts)))
    pack(regions, [region.nbytes for region in regions], memoryview(target))
    assert target == b"".join(parts)
    copies = [bytearray(len(part)) for part in parts]
    unpack(memoryview(target), [Region.of(each) for each in copies], [len(p) for p in parts])
    assert copies == parts


def test_what_lies_between_the_regions_stays():
    memory = np.zeros(64 * MIN_ROWS, np.uint8)
    regions = rows_of(memory, 16, 64, MIN_ROWS)
    Pieces(regions, [16] * MIN_ROWS).copy_from(memoryview(b"x" * 16 * MIN_ROWS))
    rows = memory.reshape(MIN_ROWS, 64)
    assert (rows[:, :16] == ord("x")).all()
    assert not rows[:, 16:].any()


def test_parts():
    parts = Parts(memoryview(b"abcdef"), (1, 0, 3, 2))
    assert [bytes(part) for part in parts] == [b"a", b"", b"bcd", b"ef"]
    assert [bytes(parts[i]) for i in (0, 2, -1)] == [b"a", b"bcd", b"ef"]
    assert [bytes(part) for part in parts[1:3]] == [b"", b"bcd"]
    assert len(parts) == 4
    with pytest.raises(IndexError):
        parts[4]
