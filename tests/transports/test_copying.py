"""Copies, in the caches and past them: the same bytes, and not one beside them."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dvrt.buffers import Region
from dvrt.transport import copying
from dvrt.transport.packing import STREAMED_BYTES, Pieces

COPIES = [copying.copy, copying.copy_past_caches]
ROOM = 64


def can_build() -> bool:
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return shutil.which("cc") is not None and header.exists()


@pytest.mark.skipif(not can_build(), reason="no C compiler, or none of Python's headers")
def test_is_native_where_there_is_a_compiler():
    assert copying.is_native()


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
    with pytest.raises((TypeError, BufferError, ValueError)):
        copying.copy_past_caches(memoryview(bytes(8)), memoryview(bytes(8)))


def test_without_a_compiler_it_copies_all_the_same(monkeypatch):
    monkeypatch.setattr(copying, "_copy_past_caches", None)
    target = bytearray(5)
    copying.copy_past_caches(memoryview(b"bytes"), memoryview(target))
    assert target == b"bytes"
    assert not copying.is_native()


@pytest.mark.parametrize("n_regions", [1, 3, 700])
def test_large_messages_come_and_go_whole(n_regions):
    """Of one region, of a few, and of rows in equal distances."""
    memory = np.random.default_rng(n_regions).integers(0, 256, STREAMED_BYTES + 12345, np.uint8)
    size = memory.nbytes // n_regions
    regions = [Region.of(memory[i * size : (i + 1) * size]) for i in range(n_regions)]
    sizes = [region.nbytes for region in regions]
    wanted = memory[: sum(sizes)].tobytes()
    there = bytearray(len(wanted))
    Pieces(regions, sizes).copy_to(memoryview(there))
    assert there == wanted
    memory[:] = 0
    Pieces(regions, sizes).copy_from(memoryview(there))
    assert memory[: len(wanted)].tobytes() == wanted
