"""Timers that are finer than a loop's: when they fire, when they do not."""

from __future__ import annotations

import asyncio
import time

import pytest

from dvrt.fine_timer import FineTimer


@pytest.mark.usefixtures("loop_kind")
async def test_it_fires_once_and_not_before_its_time():
    fired: list[float] = []
    rung = asyncio.Event()

    def ring() -> None:
        fired.append(time.monotonic())
        rung.set()

    timer = FineTimer(ring)
    for delay_s in (0.0103, 0.0007, 0.0):
        rung.clear()
        at = time.monotonic() + delay_s
        timer.set(at)
        async with asyncio.timeout(10):
            await rung.wait()
        assert fired[-1] >= at
    timer.close()
    await asyncio.sleep(0.01)
    assert len(fired) == 3


@pytest.mark.usefixtures("loop_kind")
async def test_setting_it_anew_replaces_what_was_set():
    fired: list[float] = []
    timer = FineTimer(lambda: fired.append(time.monotonic()))
    later = time.monotonic() + 0.02
    timer.set(later - 0.015)
    timer.set(later)
    async with asyncio.timeout(10):
        while not fired:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    timer.close()
    assert len(fired) == 1
    assert fired[0] >= later


async def test_a_time_that_has_passed_is_now_and_a_closed_one_is_silent():
    rung = asyncio.Event()
    timer = FineTimer(rung.set)
    timer.set(-5.0)
    async with asyncio.timeout(10):
        await rung.wait()
    rung.clear()
    timer.set(time.monotonic() + 0.002)
    timer.close()
    timer.close()
    await asyncio.sleep(0.01)
    assert not rung.is_set()
