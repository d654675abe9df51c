"""``bench modes``: each mode's copies are the number that the paper gives, or the run fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from dvrt.bench import modes
from dvrt.bench.modes import Shape
from dvrt.cuda.cpu_device import CpuDevice
from dvrt.streaming import Cache, Kit
from dvrt.transport import Channel, connect

TINY = Shape(name="tiny", all_layers=1, heads=2, dim=16, weight_bytes=1e6)


class Parent:
    """What the receiver tells its address, in place of a pipe."""

    def __init__(self) -> None:
        self.address = asyncio.get_running_loop().create_future()

    def send(self, address: str) -> None:
        self.address.set_result(address)


@contextlib.asynccontextmanager
async def peer(shape: Shape) -> AsyncIterator[tuple[Kit, Cache, Channel]]:
    """As ``modes._peer``, the receiver in this process."""
    parent, device = Parent(), CpuDevice()
    receiving = asyncio.create_task(modes._take_all(parent, shape))
    try:
        address = await parent.address
        async with Kit(device) as kit:
            yield kit, modes._filled(device, shape.layout, 1), await connect(address, deadline_s=30)
    finally:
        await device.aclose()
        await receiving


async def test_copies_are_as_many_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_peer", peer)
    found = await modes._measure(TINY, repeats=1, steps=2)
    assert found["naive"]["copies_a_step"] == found["naive_copies_expected"] == 8 * 2 * 3
    assert {found[mode]["copies_a_step"] for mode in ("buffered", "layered", "overlapped")} == {2}


async def test_another_number_of_copies_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_peer", peer)
    monkeypatch.setattr(Shape, "naive_copies", 47)
    with pytest.raises(RuntimeError, match="tiny, naive: 48 copies a step, expected 47"):
        await modes._measure(TINY, repeats=1, steps=2)
