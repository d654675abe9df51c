"""Virtual time: free sleep, seeded order, asyncio's promises kept, no outside, no deadlock."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import pytest

from dvrt.virtual import Deadlock, VirtualLoop, run_virtual


def test_an_hour_of_sleep_costs_nothing_and_passes_exactly() -> None:
    async def nap() -> float:
        for _ in range(3600):
            await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run_virtual(nap()) == 3600.0
    assert time.monotonic() - began < 2


def test_a_century_is_no_problem_for_the_clock() -> None:
    async def wait() -> list[float]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(100 * 365 * 86400)
        stamps = []
        for _ in range(3):
            await asyncio.sleep(1e-9)
            async with asyncio.timeout(0.001):
                stamps.append(loop.time())
        return stamps

    stamps = run_virtual(wait())
    assert stamps == sorted(stamps)


def _dance(seed: int | None) -> list[object]:
    """Tasks that meet at timers, locks, queues and events; what happened, in order."""
    log: list[object] = []
    rng = random.Random(5)

    async def dancer(name: int, queue: asyncio.Queue[int], lock: asyncio.Lock) -> None:
        for step in range(20):
            await asyncio.sleep(rng.choice([0, 0.5, 1]))
            async with lock:
                log.append((asyncio.get_running_loop().time(), name, step))
            queue.put_nowait(name)

    async def main() -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        lock = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            for name in range(6):
                group.create_task(dancer(name, queue, lock))
            for _ in range(120):
                log.append(await queue.get())
        log.append(await asyncio.to_thread(lambda: "inline"))

    run_virtual(main(), seed=seed)
    return log


def test_the_same_seed_gives_the_same_order_and_others_give_others() -> None:
    orders = {seed: _dance(seed) for seed in (0, 1, 2, None)}
    for seed, order in orders.items():
        assert _dance(seed) == order
    texts = {str(order) for order in orders.values()}
    assert len(texts) == 4
    assert len({str(sorted(map(str, order))) for order in [_dance(3), _dance(3)]}) == 1


def test_plain_callbacks_keep_their_order_under_every_seed() -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []
        for i in range(50):
            loop.call_soon(seen.append, i)
            if i % 7 == 0:
                asyncio.create_task(asyncio.sleep(0))  # noqa: RUF006
        await asyncio.sleep(1)
        return seen

    for seed in range(5):
        assert run_virtual(main(), seed=seed) == list(range(50))


def test_simultaneous_timers_are_permuted_and_others_are_not() -> None:
    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[float, int]] = []
        for i in range(40):
            loop.call_at(i // 10 + 1, lambda i=i: seen.append((loop.time(), i)))
        await asyncio.sleep(10)
        return seen

    plain = run_virtual(main(), seed=None)
    assert [i for _, i in plain] == list(range(40))
    seeded = [run_virtual(main(), seed=seed) for seed in range(3)]
    for order in seeded:
        assert [when for when, _ in order] == [i // 10 + 1 for i in range(40)]
        assert sorted(order) == plain
    assert len({str(order) for order in seeded}) == 3


def test_a_stream_of_one_task_is_never_reordered() -> None:
    async def main() -> list[int]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=3)
        got: list[int] = []

        async def produce() -> None:
            for i in range(200):
                await queue.put(i)

        async def consume() -> None:
            for _ in range(200):
                got.append(await queue.get())

        await asyncio.gather(produce(), consume(), asyncio.sleep(0.1))
        return got

    for seed in range(5):
        assert run_virtual(main(), seed=seed) == list(range(200))


def test_timeouts_and_cancellation_work() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7):
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), 3)
        task = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.sleep(1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 11.0


def test_a_deadlock_is_named_with_the_stacks_of_its_tasks() -> None:
    async def wait_for_godot() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.sleep(5)
        await asyncio.gather(wait_for_godot(), wait_for_godot())

    with pytest.raises(Deadlock, match=r"at 5\.000000 s") as caught:
        run_virtual(main())
    assert str(caught.value).count("await asyncio.Event().wait()") == 2


def test_there_is_no_outside() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="virtual time"):
            await asyncio.open_connection("localhost", 1)
        with pytest.raises(RuntimeError, match="virtual time"):
            await asyncio.create_subprocess_exec("true")
        with pytest.raises(RuntimeError, match="virtual time"):
            loop.add_reader(0, print)
        with pytest.raises(RuntimeError, match="virtual time"):
            await loop.getaddrinfo("localhost", 80)

    run_virtual(main())


def test_functions_for_threads_run_inline_and_their_errors_arrive() -> None:
    async def main() -> None:
        assert await asyncio.to_thread(sum, [1, 2, 3]) == 6
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)

    run_virtual(main())


def test_cancelled_timers_do_not_pile_up() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(20_000):
            loop.call_later(1000, print).cancel()
        async with asyncio.timeout(5000):
            await asyncio.sleep(2000)
        return len(loop._timers)

    assert run_virtual(main()) < 500


@pytest.mark.virtual(seed=3)
async def test_coroutine_tests_can_run_in_virtual_time() -> None:
    await asyncio.sleep(86400)
    assert asyncio.get_running_loop().time() >= 86400
