"""The staging pool: bounded, first come first served, with deadlines, cancellation, quarantine."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.buffers import Region
from dvrt.cuda.pinned import StagingPool, size_class
from dvrt.errors import OutOfMemory, StaleLease, TransferTimeout

MIB = 1 << 20


class Memory:
    def __init__(self):
        self.held = {}

    def allocate(self, nbytes):
        region = Region.of(bytearray(nbytes))
        self.held[region.address] = nbytes
        return region

    def free(self, region):
        del self.held[region.address]


def pool_of(limit):
    memory = Memory()
    return StagingPool(memory.allocate, memory.free, limit_bytes=limit), memory


async def test_buffers_are_reused_and_never_exceed_the_limit():
    pool, memory = pool_of(4 * MIB)
    for _ in range(5):
        async with asyncio.timeout(5):
            with await pool.lease(MIB) as a, await pool.lease(3 * MIB) as b:
                assert (a.region.nbytes, b.region.nbytes) == (MIB, 3 * MIB)
                assert sum(memory.held.values()) <= 4 * MIB
    statistics = pool.statistics()
    assert statistics.allocations == 2
    assert statistics.leases == 10
    with await pool.lease(4 * MIB):
        assert sum(memory.held.values()) == 4 * MIB
    pool.close()
    assert not memory.held


async def test_too_much_is_refused_and_too_late_is_told(loop_kind):
    pool, _ = pool_of(MIB)
    with pytest.raises(OutOfMemory):
        await pool.lease(MIB + 1)
    with await pool.lease(MIB):
        with pytest.raises(TransferTimeout):
            await pool.lease(1, deadline_s=0.01)
        with pytest.raises(OutOfMemory):
            pool.lease_nowait(1)
    with await pool.lease(MIB, deadline_s=0.01):
        pass
    assert pool.statistics().waiting == 0


async def test_a_large_lease_is_not_overtaken():
    pool, _ = pool_of(4 * MIB)
    first = await pool.lease(2 * MIB)
    order = []

    async def take(name, nbytes):
        with await pool.lease(nbytes):
            order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(take("large", 4 * MIB))
        await asyncio.sleep(0)
        group.create_task(take("small", 1))
        await asyncio.sleep(0.01)
        assert order == []
        first.release()
    assert order == ["large", "small"]


async def test_quarantine_keeps_the_room_until_it_is_settled():
    pool, _ = pool_of(MIB)
    staging = await pool.lease(MIB)
    staging.quarantine()
    assert pool.statistics().quarantined_bytes == MIB
    with pytest.raises(TransferTimeout):
        await pool.lease(1, deadline_s=0.01)
    staging.settle()
    with pytest.raises(StaleLease):
        staging.settle()
    with pytest.raises(StaleLease):
        staging.release()
    with await pool.lease(MIB):
        pass


@pytest.mark.timeout(20)
@given(st.data())
async def test_cancelled_waiters_lose_nothing(data):
    pool, memory = pool_of(2 * MIB)
    sizes = data.draw(st.lists(st.integers(1, 2 * MIB), min_size=1, max_size=8))
    held = await pool.lease(2 * MIB)

    async def take(nbytes):
        with await pool.lease(nbytes):
            assert sum(memory.held.values()) <= 2 * MIB
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(take(size)) for size in sizes]
    for step, task in enumerate(tasks):
        for _ in range(data.draw(st.integers(0, 3))):
            await asyncio.sleep(0)
        if step == 0:
            held.release()
        if data.draw(st.booleans()):
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not [t for t in tasks if not t.cancelled() and t.exception()]
    statistics = pool.statistics()
    assert (statistics.leased_bytes, statistics.waiting) == (0, 0)
    with await pool.lease(2 * MIB, deadline_s=1):
        pass


@given(st.integers(0, 1 << 34))
def test_size_classes_fit_and_waste_at_most_half(nbytes):
    size = size_class(nbytes)
    assert size >= nbytes
    assert size < 2 * max(nbytes, 4 << 10) or nbytes == 0


async def test_memory_that_cannot_be_had_is_there_for_the_next():
    memory, failures = Memory(), [OutOfMemory("pinned", needed_bytes=1, free_bytes=0)]

    def allocate(nbytes):
        if failures and nbytes == 3 * MIB:
            raise failures.pop()
        return memory.allocate(nbytes)

    pool = StagingPool(allocate, memory.free, limit_bytes=4 * MIB)
    held = await pool.lease(2 * MIB)
    large = asyncio.create_task(pool.lease(3 * MIB))
    await asyncio.sleep(0)
    small = asyncio.create_task(pool.lease(2 * MIB))
    await asyncio.sleep(0)
    held.release()
    with pytest.raises(OutOfMemory):
        await large
    (await asyncio.wait_for(small, 5)).release()


async def test_whoever_waits_learns_that_the_pool_was_closed():
    pool, memory = pool_of(MIB)
    held = await pool.lease(MIB)
    waiting = asyncio.create_task(pool.lease(MIB))
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(StaleLease, match="closed"):
        await waiting
    with pytest.raises(StaleLease, match="closed"):
        await pool.lease(1)
    held.release()
    assert not memory.held
    assert pool.statistics().leased_bytes == 0
