"""Workers as processes: how they start, how their end is known, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dvrt.errors import ConfigError, StageFailed
from dvrt.processes.nursery import Nursery
from dvrt.processes.task_nursery import TaskNursery
from dvrt.processes.worker import WorkerExit
from tests.actors.crew import Order, wait_until

OBEY = "tests.actors.crew:obey"
CREW = "tests.actors.crew"


def order(what: str, text: str = "") -> Order:
    return Order(what=what, text=text)


async def end_of(nursery, what: str, text: str = "") -> WorkerExit:
    worker = await nursery.spawn(OBEY, order(what, text), name=what)
    return await worker.wait()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def running(nursery, count: int, what: str = "polite"):
    spawns = (nursery.spawn(OBEY, order(what), name=f"w{i}") for i in range(count))
    return await asyncio.gather(*spawns)


async def test_exit_codes_signals_and_last_words(loop_kind) -> None:
    async with Nursery(preload=[CREW], loop=loop_kind) as nursery:
        clean = await end_of(nursery, "print", "hello")
        assert (clean.code, clean.is_clean, clean.last_words) == (0, True, "hello\n")
        assert (await end_of(nursery, "return", "7")).code == 7
        failed = await end_of(nursery, "fail", "no more ink")
        assert (failed.code, failed.reason) == (1, "exit code 1")
        assert "ValueError: no more ink" in str(failed)
        crashed = await end_of(nursery, "segfault")
        assert (crashed.signal, crashed.reason) == (signal.SIGSEGV, "killed by SIGSEGV")
        aborted = await end_of(nursery, "abort")
        assert aborted.reason == "killed by SIGABRT"
        assert "these are my last words" in aborted.last_words
        assert loop_kind in (await end_of(nursery, "loop")).last_words
        long = await end_of(nursery, "print", "x" * 50_000)
        assert 0 < len(long.last_words) <= 8192


async def test_a_killed_worker_is_known_at_once(loop_kind) -> None:
    async with Nursery(preload=[CREW], loop=loop_kind) as nursery:
        delays = []
        for worker in await running(nursery, 5):
            began = time.monotonic()
            os.kill(worker.pid, signal.SIGKILL)
            end = await worker.wait()
            delays.append(time.monotonic() - began)
            assert (end.signal, worker.exit) == (signal.SIGKILL, end)
            assert not is_alive(worker.pid)
            worker.kill()
            worker.terminate()
        assert sorted(delays)[2] < 0.1


async def test_stopping_and_continuing_is_seen(loop_kind) -> None:
    async with Nursery(preload=[CREW], loop=loop_kind) as nursery:
        seen: list[bool] = []
        worker = await nursery.spawn(
            OBEY, order("polite"), name="w", on_pause=lambda _, is_paused: seen.append(is_paused)
        )
        os.kill(worker.pid, signal.SIGSTOP)
        await wait_until(lambda: seen == [True])
        assert worker.is_paused and "paused" in repr(worker)
        os.kill(worker.pid, signal.SIGCONT)
        await wait_until(lambda: seen == [True, False])
        os.kill(worker.pid, signal.SIGSTOP)
        await wait_until(lambda: worker.is_paused)
        began = time.monotonic()
        await nursery.aclose(limit_s=0.2)
        assert time.monotonic() - began < 2
        assert worker.exit.reason == "killed by SIGKILL"


async def test_interrupts_of_the_terminal_reach_no_worker() -> None:
    async with Nursery(preload=[CREW], loop="asyncio") as nursery:
        worker, *_ = await running(nursery, 1)
        await asyncio.sleep(0.1)
        assert os.getsid(worker.pid) == os.getsid(nursery.server_pid) == nursery.server_pid
        assert os.getsid(0) != nursery.server_pid
        for _ in range(3):
            os.kill(worker.pid, signal.SIGINT)
            os.kill(nursery.server_pid, signal.SIGINT)
        assert (await end_of(nursery, "print", "still here")).is_clean
        assert worker.exit is None
        worker.terminate()
        end = await worker.wait()
        assert end.reason == "terminated" and "goodbye" in end.last_words


async def test_a_hundred_workers_at_once_and_nothing_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with Nursery(preload=[CREW], loop="asyncio") as nursery:
        workers = await running(nursery, 100)
        server = nursery.server_pid
        assert len({worker.pid for worker in workers}) == 100
        assert len(os.listdir("/proc/self/fd")) < before + 120
    assert {worker.exit.reason for worker in workers} == {"terminated"}
    assert not is_alive(server) and not any(is_alive(worker.pid) for worker in workers)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not set(map(int, children)) & {server, *(worker.pid for worker in workers)}
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_workers_inherit_no_files_of_the_server_or_each_other() -> None:
    async with Nursery(preload=[CREW], loop="asyncio") as nursery:
        first = (await end_of(nursery, "files")).last_words
        await running(nursery, 10)
        assert (await end_of(nursery, "files")).last_words == first
        assert len(first.split()) <= 7


async def test_the_environment_and_the_loop_are_as_wished() -> None:
    env = {"DVRT_TEST_COLOUR": "green"}
    async with Nursery(preload=[CREW], env=env) as nursery:
        assert (await end_of(nursery, "environment", "DVRT_TEST_COLOUR")).last_words == "green\n"
    with pytest.raises(ConfigError, match="loop"):
        Nursery(loop="curly")


async def test_when_the_fork_server_is_killed_workers_live_on() -> None:
    async with Nursery(preload=[CREW], loop="asyncio") as nursery:
        first, second = await running(nursery, 2)
        server = nursery.server_pid
        os.kill(server, signal.SIGKILL)
        await wait_until(lambda: nursery.server_pid is None)
        assert is_alive(first.pid) and first.exit is None
        began = time.monotonic()
        os.kill(first.pid, signal.SIGKILL)
        end = await first.wait()
        assert time.monotonic() - began < 1
        assert end.code is None and end.signal is None and "nobody knows how" in end.reason
        assert (await end_of(nursery, "print", "from a new server")).is_clean
        assert nursery.server_pid not in (None, server)
        assert second.exit is None
    assert second.exit is not None and not is_alive(second.pid)


async def test_a_stopped_fork_server_is_no_trap() -> None:
    async with Nursery(preload=[CREW], loop="asyncio") as nursery:
        (worker,) = await running(nursery, 1)
        server = nursery.server_pid
        os.kill(server, signal.SIGSTOP)
        with pytest.raises(StageFailed, match=r"w1 failed: not started within 0\.1 s"):
            await nursery.spawn(OBEY, order("polite"), name="w1", deadline_s=0.1)
        worker.kill()
        assert "nobody knows how" in (await worker.wait()).reason
        os.kill(server, signal.SIGCONT)
        assert (await end_of(nursery, "print", "x")).is_clean
    assert not is_alive(server)


async def test_a_cancelled_spawn_leaves_no_worker() -> None:
    async with Nursery(loop="asyncio") as nursery:
        spawns = [
            asyncio.create_task(nursery.spawn(OBEY, order("polite"), name=f"w{i}"))
            for i in range(6)
        ]
        await asyncio.sleep(0.05)
        for spawn in spawns[::2]:
            spawn.cancel()
        await asyncio.wait(spawns)
        kept = [spawn.result() for spawn in spawns[1::2]]
        await wait_until(lambda: len(nursery._workers) == 3)
        assert {worker.pid for worker in kept} == set(nursery._workers)


async def test_what_cannot_be_imported_is_named() -> None:
    async with Nursery(preload=["no.such.module"], loop="asyncio") as nursery:
        with pytest.raises(StageFailed, match=r"no\.such\.module cannot be imported"):
            await nursery.spawn(OBEY, order("polite"), name="w")
        with pytest.raises(StageFailed, match="cannot be imported"):
            await nursery.spawn(OBEY, order("polite"), name="w")
    async with Nursery(loop="asyncio") as nursery:
        for target in ("no.such:thing", "tests.actors.crew:nothing", "nonsense"):
            worker = await nursery.spawn(target, order("x"), name="w")
            end = await worker.wait()
            assert end.code == 1 and target in end.last_words


async def test_deaf_workers_are_killed_and_a_closed_nursery_spawns_nothing() -> None:
    async with Nursery(preload=[CREW], loop="asyncio") as nursery:
        deaf, polite = await running(nursery, 1, "deaf") + await running(nursery, 1)
        await asyncio.sleep(0.2)
        await nursery.aclose(limit_s=0.3)
        assert (deaf.exit.reason, polite.exit.reason) == ("killed by SIGKILL", "terminated")
        await nursery.aclose()
        with pytest.raises(StageFailed, match="closed"):
            await nursery.spawn(OBEY, order("polite"), name="w")


async def test_closing_can_be_cancelled_and_is_then_quick() -> None:
    nursery = Nursery(preload=[CREW], loop="asyncio")
    await nursery.__aenter__()
    workers = await running(nursery, 3, "deaf")
    await asyncio.sleep(0.2)
    closing = asyncio.create_task(nursery.aclose(limit_s=60))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing
    assert time.monotonic() - began < 2
    assert all(worker.exit.reason == "killed by SIGKILL" for worker in workers)


async def test_too_much_to_tell_a_worker() -> None:
    async with Nursery(loop="asyncio") as nursery:
        with pytest.raises(StageFailed, match="limit"):
            await nursery.spawn(OBEY, order("print", "x" * 200_000), name="w")
        assert (await end_of(nursery, "print", "x" * 50_000)).is_clean


@pytest.mark.virtual
async def test_tasks_stand_in_for_processes() -> None:
    async with TaskNursery() as nursery:
        assert (await end_of(nursery, "return", "7")).code == 7
        failed = await end_of(nursery, "fail", "no more ink")
        assert (failed.code, failed.reason) == (1, "exit code 1")
        assert "ValueError: no more ink" in failed.last_words
        unknown = await (await nursery.spawn("no.such:thing", order("x"), name="w")).wait()
        assert unknown.code == 1 and "no.such:thing" in unknown.last_words
        killed, terminated, left = [
            await nursery.spawn("asyncio:sleep_for_ever", order("x"), name="w"),
            *[await nursery.spawn("tests.actors.crew:rest", order("x"), name="w") for _ in "ab"],
        ]
        assert (await killed.wait()).code == 1
        terminated.terminate()
        assert (await terminated.wait()).reason == "terminated"
        left.kill()
        assert (await left.wait()).reason == "killed by SIGKILL"
        last = await nursery.spawn("tests.actors.crew:rest", order("x"), name="w")
    assert last.exit.reason == "terminated"
    with pytest.raises(StageFailed):
        await nursery.spawn(OBEY, order("x"), name="late")
