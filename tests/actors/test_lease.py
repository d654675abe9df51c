"""No worker outlives its controller, whatever the process tree and however stuck the worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from dvrt.actors.heartbeat import Heartbeat
from dvrt.processes.nursery import Nursery
from dvrt.processes.worker_process import WorkerBoot, address_towards
from tests.actors.controller_program import LEASE_S, N_WORKERS, Controller
from tests.actors.crew import SECRET, Text, make_node
from tests.actors.test_nursery import CREW, is_alive

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("controller_program.py")
SERVE = "tests.actors.crew:serve"


async def all_gone(pids: list[int], limit_s: float) -> float:
    """Seconds until no process of these is alive."""
    began = time.monotonic()
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() - began < limit_s, [pid for pid in pids if is_alive(pid)]
        await asyncio.sleep(0.005)
    return time.monotonic() - began


@asynccontextmanager
async def program(kind: str):
    """The controller program, running, and the pids of its fork server, heir and workers."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    pids: list[int] = []
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        server, heir, *workers = pids = [int(word) for word in line.split()]
        assert len(workers) == N_WORKERS and all(is_alive(pid) for pid in workers)
        yield process, server, heir, workers
    finally:
        for pid in pids:
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


async def test_workers_end_at_once_when_their_controller_is_killed() -> None:
    async with program("plain") as (process, server, _, workers):
        process.kill()
        assert await all_gone([server, *workers], limit_s=5) < LEASE_S


async def test_workers_end_though_an_heir_keeps_all_sockets_open() -> None:
    async with program("heir") as (process, server, heir, workers):
        process.kill()
        assert await all_gone([server, *workers], limit_s=5) < LEASE_S + 2
        assert is_alive(heir)


async def test_workers_end_though_the_fork_server_was_killed_before() -> None:
    async with program("plain") as (process, server, _, workers):
        os.kill(server, signal.SIGKILL)
        await asyncio.sleep(LEASE_S + 0.2)
        assert all(is_alive(pid) for pid in workers)
        process.kill()
        await all_gone(workers, limit_s=5)


async def test_workers_end_when_their_controller_is_stopped_for_too_long() -> None:
    async with program("plain") as (process, _, _, workers):
        os.kill(process.pid, signal.SIGSTOP)
        assert await all_gone(workers, limit_s=8) < LEASE_S + 3


async def test_workers_end_when_their_controllers_terminal_interrupts_it() -> None:
    async with program("plain") as (process, server, _, workers):
        process.send_signal(signal.SIGINT)
        await all_gone([process.pid, server, *workers], limit_s=8)


@asynccontextmanager
async def one_worker(lease_s: float = 0.6, **options):
    """A controller in this process, one real worker, and the worker's actor."""
    async with make_node("tcp", "controller") as node:
        controller = Controller()
        me = node.spawn(controller, name="controller")
        async with Nursery(preload=[CREW], **options) as nursery:
            boot = WorkerBoot(name="w", controller=str(me), secret=SECRET, lease_s=lease_s)
            worker = await nursery.spawn(SERVE, boot, name="w")
            joined = await asyncio.wait_for(controller.joined.get(), 10)
            ref = node.ref(joined.host_actor)
            beats = Heartbeat(
                node, ref.node_address, interval_s=0.1, limit_s=60, on_silence=lambda _: None
            )
            try:
                yield node, worker, ref
            finally:
                beats.close()


async def test_a_worker_lives_as_long_as_it_hears_its_controller(loop_kind) -> None:
    async with one_worker(lease_s=0.4, loop=loop_kind) as (_, worker, ref):
        for _ in range(3):
            await asyncio.sleep(0.3)
            assert await ref.ask(Text(text="x"), deadline_s=5) == Text(text="x")
        assert worker.exit is None
        await ref.tell(Text(text="stop"))
        end = await worker.wait()
        assert end.is_clean and end.last_words == ""


async def test_a_worker_whose_actor_fails_says_why() -> None:
    async with one_worker() as (node, worker, ref):
        told: list[str] = []
        node.watch(ref, lambda _, why: told.append(why))
        await ref.tell(Text(text="crash"))
        end = await worker.wait()
        assert end.code == 1 and "ValueError: the worker broke" in end.last_words
        assert told == ["failed: ValueError: the worker broke"]


async def test_a_worker_ends_with_its_controllers_actor() -> None:
    async with one_worker() as (node, worker, _):
        await node.stop("controller", "enough")
        assert (await worker.wait()).is_clean


async def test_a_worker_that_is_shut_out_ends() -> None:
    async with one_worker() as (node, worker, ref):
        node.fence(ref.node_address, "it was silent")
        end = await worker.wait()
        assert end.reason == "its lease ended" and "the controller is gone" in end.last_words


@pytest.mark.parametrize("how", ["block", "hold the interpreter"])
async def test_a_stuck_worker_is_ended_by_its_watchdog_and_says_where_it_was(how) -> None:
    async with one_worker() as (node, worker, ref):
        told: list[str] = []
        node.watch(ref, lambda _, why: told.append(why))
        began = time.monotonic()
        await ref.tell(Text(text=how))
        end = await worker.wait()
        assert time.monotonic() - began < 0.6 + 1.0 + 1.0
        assert end.code == 1
        assert "Timeout" in end.last_words and "in receive" in end.last_words
        assert len(told) == 1


async def test_a_worker_that_cannot_reach_its_controller_ends() -> None:
    async with Nursery(preload=[CREW]) as nursery:
        boot = WorkerBoot(name="w", controller="tcp://127.0.0.1:9/c", secret=SECRET, lease_s=0.5)
        end = await (await nursery.spawn(SERVE, boot, name="w")).wait()
        assert end.reason == "its lease ended" and "cannot reach it" in end.last_words


async def test_a_worker_with_another_secret_ends() -> None:
    async with make_node("tcp", "controller") as node:
        me = node.spawn(Controller(), name="controller")
        async with Nursery(preload=[CREW]) as nursery:
            boot = WorkerBoot(name="w", controller=str(me), secret=b"a guess", lease_s=2)
            end = await (await nursery.spawn(SERVE, boot, name="w")).wait()
            assert end.reason == "its lease ended" and "secret" in end.last_words


async def test_where_a_worker_listens() -> None:
    assert await address_towards("tcp://127.0.0.1:80/controller") == "tcp://127.0.0.1:0"
    assert await address_towards("tcp://localhost:80/controller") in (
        "tcp://127.0.0.1:0",
        "tcp://[::1]:0",
    )
    assert await address_towards("local://controller/controller") == "local://"
