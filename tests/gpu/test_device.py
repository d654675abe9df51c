"""The real CUDA device against NumPy: copies, kernels, order, interop. Only where there is one."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

from dvrt.buffers import MemoryKind, Region
from dvrt.cuda.device import open_device
from dvrt.cuda.fences import all_done
from dvrt.cuda.tensors import as_tensor
from dvrt.errors import OutOfMemory
from dvrt.kv.layout import Layout
from dvrt.kv.plan import Side, Worker
from dvrt.kv.regions import Box, copies
from dvrt.kv.spans import Span
from dvrt.streaming import Cache, Kit, Mode, Setup, Setups, open_link, stream_in, stream_out
from dvrt.transport import connect, listen

pytestmark = [pytest.mark.gpu, pytest.mark.may_block]

SIZES = {"layers": 3, "rows": 2, "heads": 4, "tokens": 40, "dim": 16, "item_bytes": 2}
LAYOUTS = {
    "paper": Layout.paper(**SIZES),
    "head major": Layout.head_major(**SIZES),
    "token major": Layout.token_major(**SIZES),
}
BOX = Box(layers=Span.of(1, 3), rows=(1, 0), heads=Span.of(1, 4), tokens=Span.of(7, 31))
ME = Worker(0, 0)


@contextlib.asynccontextmanager
async def opened():
    device = open_device("cuda:0")
    try:
        yield device
    finally:
        await device.aclose()


def host_array(region):
    """What lies in pinned memory, writable."""
    host = Region(region.address, region.nbytes, MemoryKind.HOST, region.owner)
    return np.frombuffer(host.view(), np.uint8)


async def filled(device, content):
    region, staging = device.alloc(content.size), device.alloc_host(content.size)
    host_array(staging)[:] = content
    await device.copy_in(region, staging).done(deadline_s=30)
    return region


async def content_of(device, region):
    staging = device.alloc_host(region.nbytes)
    await device.copy_out(staging, region).done(deadline_s=30)
    return host_array(staging).copy()


@pytest.mark.parametrize("source", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
async def test_kernels_pack_and_unpack_as_the_processor_does(source, target):
    own, wire = LAYOUTS[source], LAYOUTS[target]
    layers, _, rows, heads, tokens = BOX.shape
    packed = wire.packed(layers=layers, rows=rows, heads=heads, tokens=tokens)
    blocks = copies(own, BOX, packed, Box.whole(packed), None)
    content = np.random.default_rng(1).integers(0, 256, own.nbytes, np.uint8)
    expected = np.zeros(packed.nbytes, np.uint8)
    for block in blocks:
        move(expected, content, block)
    async with opened() as device:
        memory, staging = await filled(device, content), device.alloc_host(packed.nbytes)
        await device.pack(staging, memory, blocks).done(deadline_s=30)
        assert np.array_equal(host_array(staging), expected)
        empty = await filled(device, np.zeros(own.nbytes, np.uint8))
        back = [block.reversed() for block in blocks]
        await device.unpack(empty, staging, back).done(deadline_s=30)
        wanted = np.zeros(own.nbytes, np.uint8)
        for block in back:
            move(wanted, expected, block)
        assert np.array_equal(await content_of(device, empty), wanted)


def move(target, source, block):
    """One block, run by run."""
    for index in np.ndindex(*block.shape):
        a = block.source_offset + int(np.dot(index, block.source_strides or (0,) * len(index)))
        b = block.target_offset + int(np.dot(index, block.target_strides or (0,) * len(index)))
        target[b : b + block.run_bytes] = source[a : a + block.run_bytes]


async def test_a_copy_comes_after_the_compute_that_makes_its_bytes():
    import torch

    async with opened() as device:
        region, staging = device.alloc(4 << 20), device.alloc_host(4 << 20)
        tensor = as_tensor(region, (1 << 20,), torch.float32)
        assert tensor.data_ptr() == region.address

        def compute():
            factor = torch.ones((4096, 4096), device="cuda:0")
            for _ in range(20):
                factor = factor @ factor / 4096
            tensor.fill_(float(factor[0, 0]) * 0 + 7)

        for value in (1.0, 2.0):
            tensor.fill_(value)
            running = asyncio.create_task(device.run(compute))
            await asyncio.sleep(0)
            fence = device.copy_out(staging, region, after=[device.fence()])
            await all_done([fence], deadline_s=60)
            await running
            assert (host_array(staging).view(np.float32) == 7).all()


async def test_memory_that_is_not_there_is_an_error_of_ours():
    async with opened() as device:
        with pytest.raises(OutOfMemory):
            device.alloc(1 << 45)
        assert await device.run(lambda: "fine") == "fine"


@pytest.mark.parametrize("mode", [Mode.NAIVE, Mode.BUFFERED, Mode.OVERLAPPED])
async def test_caches_on_the_device_are_streamed(mode):
    """Two caches on one GPU, in two layouts, by way of pinned staging and shared memory."""
    side = Side(layers=(Span.of(0, 3),), heads=(Span.of(0, 4),), batches=((0, 1),))
    own, wire = LAYOUTS["paper"], LAYOUTS["token major"]
    setup = Setup(model="gpu", n_layers=3, n_heads=4, dim=16, item_bytes=2)
    setups = Setups(source=side, target=side, wire=wire)
    content = np.random.default_rng(2).integers(0, 256, own.nbytes, np.uint8)
    accepted, over = asyncio.Queue(), asyncio.Event()

    async def keep(channel):
        accepted.put_nowait(channel)
        await over.wait()

    async with opened() as device, Kit(device) as here, Kit(device) as there:
        source = Cache(region=await filled(device, content), layout=own)
        target = Cache(region=device.alloc(wire.nbytes), layout=wire)
        async with await listen("shm://", keep) as listener:
            channel = await connect(listener.address, deadline_s=10)
            one, other = await asyncio.gather(
                open_link(channel, here, setup, deadline_s=10),
                open_link(await accepted.get(), there, setup, deadline_s=10),
            )

            async def take():
                boxes = stream_in(
                    there, "kv", setups, ME, [target], {ME: other}, Span.of(0, 40), deadline_s=30
                )
                async for _ in boxes:
                    pass

            await asyncio.gather(
                take(),
                stream_out(
                    *(here, "kv", setups, ME, [source], {ME: one}, Span.of(0, 40)),
                    deadline_s=30,
                    mode=mode,
                ),
            )
            expected = np.zeros(wire.nbytes, np.uint8)
            for block in copies(own, Box.whole(own), wire, Box.whole(wire), None):
                move(expected, content, block)
            assert np.array_equal(await content_of(device, target.region), expected)
            await asyncio.gather(one.aclose(), other.aclose())
            over.set()
