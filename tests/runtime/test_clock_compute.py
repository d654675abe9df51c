"""The null device's own clock: what is when done, in what order, and what closing leaves."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from dvrt.stages.clock_compute import ClockCompute

STEP_S = 0.004


class Unusual(BaseException):
    """No Exception."""


@pytest.mark.usefixtures("loop_kind")
async def test_work_is_done_in_order_and_takes_the_devices_time():
    compute, done = ClockCompute(), []
    began = time.monotonic()
    futures = [compute.submit(lambda i=i: done.append(i) or i, cost_s=STEP_S) for i in range(5)]
    results = await asyncio.gather(*futures)
    took_s = time.monotonic() - began
    compute.abandon()
    assert done == [each.value for each in results] == list(range(5))
    assert took_s >= 5 * STEP_S
    for before, after in itertools.pairwise(results):
        assert after.began == pytest.approx(before.began + before.busy_s, abs=1e-9)
    assert all(each.busy_s >= STEP_S - 1e-9 for each in results)


@pytest.mark.may_block
async def test_what_costs_nothing_does_not_delay_the_device():
    compute = ClockCompute()
    first = compute.submit(lambda: 1, cost_s=STEP_S)
    free = compute.submit(lambda: time.sleep(STEP_S / 4))
    last = compute.submit(lambda: 2, cost_s=STEP_S)
    one, between, two = await asyncio.gather(first, free, last)
    compute.abandon()
    assert two.began == pytest.approx(one.began + one.busy_s, abs=1e-9)
    assert between.busy_s >= STEP_S / 4


async def test_the_device_waits_where_there_is_nothing_to_do():
    compute = ClockCompute()
    first = await compute.submit(lambda: 1, cost_s=STEP_S)
    await asyncio.sleep(2 * STEP_S)
    asked = time.monotonic()
    second = await compute.submit(lambda: 2, cost_s=STEP_S)
    compute.abandon()
    assert second.began >= asked > first.began + first.busy_s


async def test_work_without_a_cost_comes_behind_what_has_one():
    compute, ended = ClockCompute(), []
    slow = compute.submit(lambda: "slow", cost_s=STEP_S)
    free = compute.submit(lambda: "free")
    slow.add_done_callback(lambda _: ended.append("slow"))
    free.add_done_callback(lambda _: ended.append("free"))
    assert (await free).value == "free"
    compute.abandon()
    assert ended == ["slow", "free"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [(ValueError, ValueError), (StopIteration, RuntimeError), (Unusual, Unusual)],
)
async def test_an_error_is_the_waiters_and_the_next_work_goes_on(error, seen):
    def fail() -> None:
        raise error("on purpose")

    compute = ClockCompute()
    broken = compute.submit(fail, cost_s=STEP_S)
    whole = compute.submit(lambda: 7, cost_s=STEP_S)
    with pytest.raises(seen):
        await broken
    assert (await whole).value == 7
    compute.abandon()


async def test_work_begins_when_its_turn_has_come_behind_whoever_waited_for_the_last():
    compute, seen = ClockCompute(), []
    first = compute.submit(lambda: seen.append("first began"), cost_s=STEP_S)
    first.add_done_callback(lambda _: seen.append("first is over"))
    last = compute.submit(lambda: seen.append("last began"), cost_s=STEP_S)
    assert seen == ["first began"]
    await last
    compute.abandon()
    assert seen == ["first began", "first is over", "last began"]


async def test_work_may_be_given_while_work_is_done_and_between():
    compute, more = ClockCompute(), []
    first = compute.submit(lambda: more.append(compute.submit(lambda: 2, cost_s=STEP_S)))
    first.add_done_callback(lambda _: more.append(compute.submit(lambda: 3)))
    began = await first
    await asyncio.sleep(0)
    second, third = await asyncio.gather(*more)
    compute.abandon()
    assert (second.value, third.value) == (2, 3)
    assert second.began + second.busy_s <= third.began
    assert second.busy_s >= STEP_S - 1e-9 > began.busy_s


@pytest.mark.parametrize("from_a_thread", [True, False])
async def test_closing_cancels_what_is_not_over(from_a_thread):
    compute = ClockCompute()
    waiting = compute.submit(lambda: 1, cost_s=60.0)
    await (asyncio.to_thread(compute.close) if from_a_thread else asyncio.sleep(0))
    compute.abandon()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await compute.submit(lambda: 2)
    compute.close()


async def test_a_waiter_that_went_away_holds_nobody_up():
    compute = ClockCompute()
    gone = compute.submit(lambda: 1, cost_s=STEP_S)
    gone.cancel()
    assert (await compute.submit(lambda: 2, cost_s=STEP_S)).value == 2
    compute.abandon()
