"""Regions name memory without copying it, and refuse what has no contiguous bytes."""

from __future__ import annotations

import numpy as np
import pytest

from dvrt.buffers import MemoryKind, Region


def test_a_region_is_the_memory_itself() -> None:
    array = np.arange(6, dtype=np.uint16)
    region = Region.of(array)
    assert (region.nbytes, region.kind) == (12, MemoryKind.HOST)
    region.part(2, 4).view()[:] = b"\xff\xff\x00\x01"
    assert array.tolist() == [0, 0xFFFF, 0x0100, 3, 4, 5]
    assert Region.of(region) is region


def test_read_only_and_empty_memory_can_be_sent() -> None:
    assert bytes(Region.of(b"abc").part(1, 2).view()) == b"bc"
    assert bytes(Region.of(bytearray()).view()) == b""


def test_torch_tensors_of_any_dtype() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(3, 4, dtype=torch.bfloat16)
    region = Region.of(tensor)
    assert region.nbytes == 24
    region.view()[:2] = b"\x80\x3f"
    assert float(tensor[0, 0]) == 1.0
    with pytest.raises(ValueError, match="contiguous"):
        Region.of(tensor.T)


def test_what_has_no_region_says_so() -> None:
    with pytest.raises(TypeError, match="no region of a int"):
        Region.of(3)
    with pytest.raises(ValueError, match="contiguous"):
        Region.of(np.zeros((4, 4))[:, 1])
    with pytest.raises(ValueError, match="outside"):
        Region.of(bytearray(4)).part(2, 3)
