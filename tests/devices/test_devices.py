"""Every device keeps the contract: CPU, null and CuPy's device on an imitation of CuPy."""

import asyncio
import contextlib
import gc
import importlib.util
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from dvrt.buffers import MemoryKind, Region
from dvrt.cuda.cpu_device import CpuDevice
from dvrt.cuda.cupy_device import CupyDevice
from dvrt.cuda.device import open_device
from dvrt.cuda.fences import Timeline, all_done
from dvrt.cuda.null_device import NullDevice, NullProfile
from dvrt.errors import ConfigError, DvrtError, OutOfMemory, TransferTimeout
from dvrt.strided import StridedCopy


def load_fake():
    path = Path(__file__).with_name("fake_cupy.py")
    spec = importlib.util.spec_from_file_location("fake_cupy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_cupy = load_fake()


@contextlib.asynccontextmanager
async def opened(kind):
    fake = fake_cupy.make()
    device = {
        "cpu": lambda: CpuDevice(),
        "null": lambda: NullDevice(NullProfile(link_bytes_per_s=1e9, latency_s=1e-5)),
        "null thread": lambda: NullDevice(NullProfile(latency_s=1e-5), is_virtual=False),
        "cupy": lambda: CupyDevice(cupy=fake),
    }[kind]()
    try:
        yield device
    finally:
        await device.aclose()
        await device.aclose()
        fake.stop()


EVERY = pytest.mark.parametrize("kind", ["cpu", "null", "null thread", "cupy"])


def bytes_at(region):
    """A writable array on the memory, device memory of the imitation included."""
    host = Region(region.address, region.nbytes, MemoryKind.HOST, region.owner)
    return np.frombuffer(host.view(), np.uint8)


def numbered(device, nbytes, *, on_host=False):
    region = device.alloc_host(nbytes) if on_host else device.alloc(nbytes)
    bytes_at(region)[:] = np.arange(nbytes) % 251
    return region


def rows(n, width, stride, *, source=0, target=0):
    """``n`` runs of ``width`` bytes, ``stride`` apart at the source, dense at the target."""
    return StridedCopy(
        run_bytes=width,
        shape=(n,),
        source_offset=source,
        source_strides=(stride,),
        target_offset=target,
        target_strides=(width,),
    )


@EVERY
async def test_copies_move_bytes_in_every_direction(kind, loop_kind):
    async with opened(kind) as device:
        device_a, device_b = numbered(device, 4096), device.alloc(4096)
        host_a, host_b = device.alloc_host(4096), device.alloc_host(4096)
        bytes_at(host_b)[:] = 0
        await device.copy_out(host_a, device_a).done(deadline_s=5)
        await device.copy_in(device_b, host_a).done(deadline_s=5)
        block = rows(1, 4096, 4096)
        device_c = device.alloc(4096)
        await device.copy_within(device_c, device_b, [block]).done(deadline_s=5)
        await device.copy_out(host_b, device_c).done(deadline_s=5)
        assert np.array_equal(bytes_at(host_b), np.arange(4096) % 251)
        statistics = device.statistics()
        assert (statistics.device_bytes, statistics.host_bytes) == (3 * 4096, 2 * 4096)
        assert statistics.copied_bytes == 4 * 4096


@EVERY
@pytest.mark.parametrize(("n", "width"), [(40, 16), (7, 48), (3, 20_000), (5, 3), (1, 1)])
async def test_pack_and_unpack_invert_each_other(kind, n, width):
    async with opened(kind) as device:
        stride = width + 5
        source = numbered(device, 64 + n * stride)
        target = device.alloc(64 + n * stride)
        bytes_at(target)[:] = 7
        staging = device.alloc_host(n * width)
        blocks = [rows(n, width, stride, source=3)]
        await device.pack(staging, source, blocks).done(deadline_s=5)
        expected = (np.arange(64 + n * stride) % 251)[3 : 3 + n * stride].reshape(n, stride)
        assert np.array_equal(bytes_at(staging).reshape(n, width), expected[:, :width])
        back = [block.reversed() for block in blocks]
        await device.unpack(target, staging, back).done(deadline_s=5)
        got = bytes_at(target)[3 : 3 + n * stride].reshape(n, stride)
        assert np.array_equal(got[:, :width], expected[:, :width])
        assert (got[:, width:] == 7).all()


@EVERY
async def test_after_orders_copies_of_different_directions(kind):
    """Out of a, then into a from elsewhere: the first copy must have read before."""
    async with opened(kind) as device:
        fake_cupy.Stream.delay_s = 0.002
        size = 2 << 20
        for _ in range(3):
            here, out = numbered(device, size), device.alloc_host(size)
            other = device.alloc_host(size)
            bytes_at(other)[:] = 9
            first = device.copy_out(out, here)
            second = device.copy_in(here, other, after=[first])
            back = device.alloc_host(size)
            third = device.copy_out(back, here, after=[second])
            await all_done([first, second, third], deadline_s=5)
            assert np.array_equal(bytes_at(out), np.arange(size) % 251)
            assert (bytes_at(back) == 9).all()
        fake_cupy.Stream.delay_s = 0.0


@EVERY
async def test_compute_runs_in_order_and_returns_its_value(kind, loop_kind):
    async with opened(kind) as device:
        order = []
        runs = [
            asyncio.create_task(device.run(lambda i=i: order.append(i) or i, cost_s=1e-4))
            for i in range(5)
        ]
        assert await asyncio.gather(*runs) == [0, 1, 2, 3, 4]
        assert order == [0, 1, 2, 3, 4]
        assert device.fence().is_done


@EVERY
async def test_what_compute_raises_comes_to_its_caller_alone(kind):
    async with opened(kind) as device:
        with pytest.raises(ZeroDivisionError):
            await device.run(lambda: 1 / 0)
        assert await device.run(lambda: "fine") == "fine"


@EVERY
async def test_a_copy_waits_for_the_compute_that_makes_its_bytes(kind):
    async with opened(kind) as device:
        source, target = device.alloc(64), device.alloc_host(64)
        bytes_at(source)[:] = 0

        def compute():
            if kind != "null":
                time.sleep(0.01)
            bytes_at(source)[:] = 5

        running = asyncio.create_task(device.run(compute))
        await asyncio.sleep(0)
        fence = device.copy_out(target, source, after=[device.fence()])
        await fence.done(deadline_s=5)
        assert (bytes_at(target) == 5).all()
        await running


@EVERY
async def test_a_copy_after_compute_that_failed_fails_too(kind):
    async with opened(kind) as device:
        source, target = device.alloc(64), device.alloc_host(64)
        bytes_at(target)[:] = 1
        running = asyncio.create_task(device.run(lambda: 1 / 0))
        await asyncio.sleep(0)
        fence = device.copy_out(target, source, after=[device.fence()])
        with pytest.raises(ZeroDivisionError):
            await fence.done(deadline_s=5)
        assert (bytes_at(target) == 1).all()
        with pytest.raises(ZeroDivisionError):
            await running


@EVERY
async def test_a_layer_is_copied_while_the_next_computes(kind):
    """A mark inside the compute lets the copy go before the compute as a whole is over."""
    if kind == "null":
        pytest.skip("compute under virtual time has no inside")
    async with opened(kind) as device:
        source, target = device.alloc(64), device.alloc_host(64)
        loop = asyncio.get_running_loop()
        marked = loop.create_future()
        release = threading.Event()

        def compute():
            bytes_at(source)[:] = 6
            loop.call_soon_threadsafe(marked.set_result, device.mark())
            assert release.wait(5)
            return "over"

        running = asyncio.create_task(device.run(compute))
        fence = await marked
        await device.copy_out(target, source, after=[fence]).done(deadline_s=5)
        assert (bytes_at(target) == 6).all()
        assert not running.done()
        release.set()
        assert await running == "over"


@EVERY
async def test_what_does_not_fit_is_refused(kind):
    async with opened(kind) as device:
        small, large = device.alloc(10), device.alloc_host(20)
        with pytest.raises(ValueError, match="20 bytes into 10"):
            device.copy_in(small, large)
        for block in (rows(2, 8, 8), rows(1, 4, 4, source=8), rows(1, 4, 4, target=18)):
            with pytest.raises(ValueError, match="outside"):
                await device.pack(large, small, [block]).done(deadline_s=5)


async def test_a_gpu_packs_into_pinned_memory_only():
    async with opened("cupy") as device:
        with pytest.raises(TypeError, match="pinned"):
            device.pack(Region.of(bytearray(8)), device.alloc(8), [rows(1, 8, 8)])


async def test_tables_are_kept_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr("dvrt.cuda.cupy_device.MAX_TABLE_BYTES", 2000)
    async with opened("cupy") as device:
        source, staging = numbered(device, 4096), device.alloc_host(640)
        for count in range(2, 40):
            await device.pack(staging, source, [rows(count, 16, 96)]).done(deadline_s=5)
        held = [table.nbytes for table in device._tables.values()]
        assert device._table_bytes == sum(held) <= 2000
        assert 0 < len(held) < 38


async def test_read_only_memory_is_copied_in():
    async with opened("cupy") as device:
        target = device.alloc(5)
        await device.copy_in(target, Region.of(b"hello")).done(deadline_s=5)
        assert bytes_at(target).tobytes() == b"hello"


async def test_pageable_copies_are_enqueued_by_the_lanes_thread_and_in_order(monkeypatch):
    enqueued = []
    memcpy = fake_cupy.memcpy_async

    def noted(*given):
        enqueued.append(threading.current_thread() is threading.main_thread())
        memcpy(*given)

    monkeypatch.setattr(fake_cupy, "memcpy_async", noted)
    async with opened("cupy") as device:
        target, pinned = device.alloc(4), device.alloc_host(4)
        pinned.view()[:] = b"last"
        device.copy_in(target, Region.of(bytearray(b"next")))
        await device.copy_in(target, pinned).done(deadline_s=5)
        assert bytes_at(target).tobytes() == b"last"
    assert enqueued[0] is False


async def test_what_a_failed_compute_launched_is_over_when_it_has_failed():
    async with opened("cupy") as device:
        launched = threading.Event()

        def compute():
            device._marks._stream.slowly(launched.set)
            raise ValueError("after a launch")

        fake_cupy.Stream.delay_s = 0.05
        try:
            with pytest.raises(ValueError, match="after a launch"):
                await device.run(compute)
        finally:
            fake_cupy.Stream.delay_s = 0.0
        assert launched.is_set()


async def test_a_prepared_table_is_used_again_wherever_it_is_moved():
    async with opened("cupy") as device:
        source, staging = numbered(device, 4096), device.alloc_host(64)
        for step in range(20):
            blocks = [rows(4, 16, 512, source=16 * step)]
            await device.pack(staging, source, blocks).done(deadline_s=5)
            expected = (np.arange(4096) % 251)[16 * step :].reshape(-1)
            first = expected[: 3 * 512 + 16]
            assert np.array_equal(bytes_at(staging)[:16], first[:16])
            assert np.array_equal(bytes_at(staging)[48:], first[-16:])
        assert len(device._tables) == 1


@EVERY
async def test_memory_is_limited_and_comes_back(kind):
    fake = fake_cupy.make()
    make = {"cpu": CpuDevice, "null": NullDevice}.get(kind)
    device = make(memory_bytes=100) if make else CupyDevice(memory_bytes=100, cupy=fake)
    first = device.alloc(60)
    with pytest.raises(OutOfMemory) as caught:
        device.alloc(60)
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (60, 40)
    device.free(first)
    device.alloc(100)
    await device.aclose()
    fake.stop()


@pytest.mark.parametrize("kind", ["cpu", "null", "null thread"])
async def test_memory_that_was_let_go_lives_until_its_copy_is_over(kind):
    """Whoever asked for the copy may have been cancelled; its memory is not somebody else's yet."""
    async with opened(kind) as device:
        gate = Timeline("gate")
        opens = gate.issue()
        regions = [numbered(device, 4096), numbered(device, 4096, on_host=True)]
        owners = [weakref.ref(region.owner) for region in regions]
        copied = device.copy_in(*regions, after=[opens])
        for region in regions:
            device.free(region)
        del region, regions
        gc.collect()
        still_there = [owner() is not None for owner in owners]
        gate.reach(opens, None if all(still_there) else DvrtError("the memory is gone"))
        await copied.done(deadline_s=5)
        gc.collect()
        assert [owner() for owner in owners] == [None, None]


@EVERY
async def test_closing_fails_what_has_not_begun_and_finishes_what_has(kind):
    if kind == "null":
        pytest.skip("compute under virtual time has no inside")
    async with opened(kind) as device:
        began, release = threading.Event(), threading.Event()
        running = asyncio.create_task(device.run(lambda: began.set() or release.wait(5)))
        waiting = asyncio.create_task(device.run(lambda: "never"))
        while not began.is_set():
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(device.aclose())
        await asyncio.sleep(0.01)
        assert not closing.done()
        release.set()
        await closing
        assert await running is True
        with pytest.raises(DvrtError, match="closed"):
            await waiting


async def test_waiting_for_a_fence_has_a_deadline_and_can_be_cancelled(loop_kind):
    async with opened("cpu") as device:
        release = threading.Event()
        running = asyncio.create_task(device.run(lambda: release.wait(5)))
        await asyncio.sleep(0)
        fence = device.fence()
        with pytest.raises(TransferTimeout):
            await fence.done(deadline_s=0.01)
        waiter = asyncio.create_task(fence.done())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        release.set()
        await running
        await fence.done(deadline_s=0)


async def test_a_slow_link_takes_its_time():
    device = CpuDevice(link_bytes_per_s=1e6)
    here, there = device.alloc(20_000), device.alloc_host(20_000)
    began = time.monotonic()
    await device.copy_out(there, here).done(deadline_s=5)
    assert time.monotonic() - began >= 0.02
    await device.aclose()


@pytest.mark.virtual
async def test_the_null_device_takes_the_profiles_time_to_the_digit():
    loop = asyncio.get_running_loop()
    profile = NullProfile(link_bytes_per_s=1000, latency_s=0.5, bytes_scale=10)
    device = NullDevice(profile)
    here, there = device.alloc(100), device.alloc_host(100)
    began = loop.time()
    compute = asyncio.create_task(device.run(lambda: None, cost_s=4.0))
    copy = device.copy_out(there, here)
    await copy.done()
    assert loop.time() - began == pytest.approx(1.5)
    await compute
    assert loop.time() - began == pytest.approx(4.0)
    after = device.copy_in(here, there, after=[device.fence()])
    late = asyncio.create_task(device.run(lambda: "late", after=[after], cost_s=1.0))
    assert await late == "late"
    assert loop.time() - began == pytest.approx(6.5)
    await device.aclose()


async def test_devices_open_by_name():
    for name, kind in (("cpu", CpuDevice), ("null", NullDevice)):
        device = open_device(name)
        assert type(device) is kind
        await device.aclose()
    for name in ("gpu", "cuda:x", ""):
        with pytest.raises(ConfigError, match="known: cpu, null, cuda:N"):
            open_device(name)


def test_a_gpu_that_is_not_there_is_a_matter_of_configuration():
    with pytest.raises(ConfigError, match="cuda:9"):
        CupyDevice(9, cupy=fake_cupy.make())
    if importlib.util.find_spec("cupy") is None:
        with pytest.raises(ConfigError, match="CuPy is not installed"):
            open_device("cuda:0")
