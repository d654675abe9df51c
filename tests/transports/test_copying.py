"""Copies, in the caches and past them: the same bytes, and not one beside them."""

from __future__ import annotations

import itertools
import platform
import shlex
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dvrt.buffers import Region
from dvrt.transport import copying, packing
from dvrt.transport.packing import STREAMED_BYTES, STREAMED_REGION_BYTES, Pieces

COPIES = [copying.copy, copying.copy_past_caches]
ROOM = 64


def can_build() -> bool:
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    compiler = shlex.split(sysconfig.get_config_var("CC") or "")
    is_there = bool(compiler) and shutil.which(compiler[0]) is not None
    return is_there and header.exists() and platform.machine() == "x86_64"


@pytest.mark.skipif(not can_build(), reason="no C compiler, headers or SSE2")
def test_is_native_where_there_is_a_compiler():
    assert copying.is_native(), "the C extension was not built: make clean setup"


@pytest.mark.parametrize("copy", COPIES)
@given(
    size=some.one_of(some.integers(0, 300), some.sampled_from([4096, 65537, (1 << 20) + 9])),
    begins=some.integers(0, ROOM),
    lands=some.integers(0, ROOM),
)
def test_any_size_and_alignment(copy, size, begins, lands):
    source = np.random.default_rng(size).integers(1, 256, size + ROOM, np.uint8)
    target = np.zeros(size + 2 * ROOM, np.uint8)
    copy(memoryview(source)[begins : begins + size], memoryview(target)[lands : lands + size])
    assert np.array_equal(target[lands : lands + size], source[begins : begins + size])
    assert not target[:lands].any()
    assert not target[lands + size :].any()


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("size", [100, 2 << 20])
def test_sizes_must_agree(copy, size):
    with pytest.raises(ValueError):
        copy(memoryview(bytes(size)), memoryview(bytearray(size + 1)))


def test_read_only_targets_stay():
    target = bytes(8)
    with pytest.raises((TypeError, BufferError)):
        copying.copy_past_caches(memoryview(b"11111111"), memoryview(target))
    assert target == bytes(8)


def test_without_a_compiler_it_copies_all_the_same(monkeypatch):
    monkeypatch.setattr(copying, "_copy_past_caches", None)
    target = bytearray(5)
    copying.copy_past_caches(memoryview(b"bytes"), memoryview(target))
    assert target == b"bytes"
    assert not copying.is_native()


def move(pieces: Pieces, there: memoryview, way: str, piece_bytes: int) -> None:
    at = 0
    while pieces.nbytes:
        size = pieces.size(piece_bytes)
        getattr(pieces, way)(there[at : at + size])
        at += size


@pytest.mark.parametrize(
    ("nbytes", "n_regions", "is_streamed"),
    [
        (STREAMED_BYTES, 1, True),
        (STREAMED_BYTES - 1, 1, False),
        (STREAMED_BYTES, 3, True),
        (STREAMED_BYTES, STREAMED_BYTES // STREAMED_REGION_BYTES, True),
        (STREAMED_BYTES, STREAMED_BYTES // STREAMED_REGION_BYTES + 1, False),
    ],
)
def test_large_messages_go_past_the_caches_and_come_whole(
    monkeypatch, nbytes, n_regions, is_streamed
):
    """Regions of unequal sizes, in pieces that end in the middle of one."""
    streamed = []
    real = packing.copy_past_caches

    def recorded(source: memoryview, target: memoryview) -> None:
        streamed.append(source.nbytes)
        real(source, target)

    monkeypatch.setattr(packing, "copy_past_caches", recorded)
    memory = np.random.default_rng(n_regions).integers(0, 256, nbytes, np.uint8)
    ends = [0, *(nbytes * i // n_regions - i % 7 for i in range(1, n_regions)), nbytes]
    regions = [Region.of(memory[a:b]) for a, b in itertools.pairwise(ends)]
    sizes = [region.nbytes for region in regions]
    wanted = memory.tobytes()
    there = bytearray(nbytes)
    move(Pieces(regions, sizes), memoryview(there), "copy_to", nbytes // 2 + 5)
    assert there == wanted
    memory[:] = 0
    move(Pieces(regions, sizes), memoryview(there), "copy_from", nbytes // 2 + 5)
    assert memory.tobytes() == wanted
    assert sum(streamed) == 2 * nbytes * is_streamed
