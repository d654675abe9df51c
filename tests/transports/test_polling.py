"""A receiver stays awake while messages come close to each other, and no longer."""

from __future__ import annotations

import asyncio

from dvrt.transport.polling import SUCCESSION_S, Polling


class Clock:
    """Seconds, as the test has it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def _turns(polling: Polling) -> bool:
    """Whether it is still awake after the loop went round a few times."""
    for _ in range(3):
        await asyncio.sleep(0)
    return polling.is_awake


async def test_one_message_alone_is_no_reason():
    clock = Clock()
    polling = Polling(clock)
    polling.came()
    assert not await _turns(polling)
    clock.now += 2 * SUCCESSION_S
    polling.came()
    assert not await _turns(polling)


async def test_a_succession_keeps_the_loop_awake_until_it_ends():
    clock = Clock()
    polling = Polling(clock)
    for _ in range(5):
        polling.came()
        clock.now += SUCCESSION_S / 2
    assert await _turns(polling)
    clock.now += SUCCESSION_S
    assert not await _turns(polling)
    polling.came()
    assert not await _turns(polling)


async def test_nothing_is_left_of_one_that_is_closed():
    polling = Polling(Clock())
    polling.came()
    polling.came()
    assert polling.is_awake
    polling.close()
    polling.close()
    assert not await _turns(polling)
