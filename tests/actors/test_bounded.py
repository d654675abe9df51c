"""Bounded queues: order, limits, waiting, closing, cancelling."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dvrt.actors.bounded import BoundedQueue


@dataclass(frozen=True)
class Item:
    number: int
    nbytes: int = 1


def make_queue(max_items: int = 2, max_bytes: int = 100) -> BoundedQueue[Item]:
    return BoundedQueue(max_items=max_items, max_bytes=max_bytes)


async def test_takes_up_to_its_limits_and_keeps_order() -> None:
    queue = make_queue()
    assert queue.offer(Item(1)) is None
    assert queue.offer(Item(2)) is None
    third, fourth = queue.offer(Item(3)), queue.offer(Item(4))
    assert third is not None and fourth is not None
    assert queue.statistics().waiting == 2
    assert await queue.get() == Item(1)
    assert await third is True and not fourth.done()
    assert [(await queue.get()).number for _ in range(3)] == [2, 3, 4]
    assert await fourth is True
    statistics = queue.statistics()
    assert (statistics.items, statistics.nbytes, statistics.highest) == (0, 0, 2)
    assert statistics.taken == 4


async def test_bytes_are_a_limit_too_but_one_item_always_fits() -> None:
    queue = make_queue(max_items=10, max_bytes=10)
    assert queue.offer(Item(1, nbytes=1000)) is None
    assert not queue.put_nowait(Item(2))
    assert queue.put_nowait(Item(3), beyond_limit=True)
    assert queue.statistics().nbytes == 1001
    assert (queue.get_nowait(), queue.get_nowait(), queue.get_nowait()) == (
        Item(1, nbytes=1000),
        Item(3),
        None,
    )
    assert queue.statistics().nbytes == 0


async def test_who_waits_is_not_overtaken() -> None:
    queue = make_queue(max_items=1)
    queue.offer(Item(1))
    waiting = queue.offer(Item(2))
    assert waiting is not None
    assert queue.get_nowait() == Item(1)
    assert waiting.result() is True
    assert not queue.put_nowait(Item(3))
    assert queue.get_nowait() == Item(2)


async def test_a_withdrawn_item_is_skipped() -> None:
    queue = make_queue(max_items=1)
    queue.offer(Item(1))
    withdrawn, kept = queue.offer(Item(2)), queue.offer(Item(3))
    assert withdrawn is not None and kept is not None
    withdrawn.cancel()
    assert queue.get_nowait() == Item(1)
    assert queue.get_nowait() == Item(3)
    assert queue.get_nowait() is None


async def test_closing_wakes_everybody() -> None:
    queue = make_queue(max_items=1)
    reader = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.offer(Item(1))
    assert await reader == Item(1)
    queue.offer(Item(2))
    waiting = queue.offer(Item(3))
    assert queue.close() == [Item(2)]
    assert waiting is not None and waiting.result() is False
    assert await queue.get() is None
    late = queue.offer(Item(4))
    assert late is not None and late.result() is False
    assert not queue.put_nowait(Item(5), beyond_limit=True)


async def test_a_cancelled_reader_loses_nothing() -> None:
    queue = make_queue()
    reader = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.offer(Item(1))
    reader.cancel()
    await asyncio.wait([reader])
    assert await queue.get() == Item(1)


@given(
    st.lists(st.one_of(st.integers(1, 60), st.none()), max_size=60),
    st.integers(1, 4),
    st.integers(1, 100),
)
async def test_nothing_is_lost_reordered_or_beyond_the_limits(
    moves: list[int | None], max_items: int, max_bytes: int
) -> None:
    queue = make_queue(max_items, max_bytes)
    offered: list[Item] = []
    got: list[Item] = []
    for move in moves:
        if move is None:
            item = queue.get_nowait()
            if item is not None:
                got.append(item)
        else:
            offered.append(Item(len(offered), nbytes=move))
            queue.offer(offered[-1])
        statistics = queue.statistics()
        assert statistics.items <= max_items
        assert statistics.nbytes <= max_bytes or statistics.items == 1
        assert not (statistics.waiting and not statistics.items)
    while (item := queue.get_nowait()) is not None:
        got.append(item)
    assert got == offered
