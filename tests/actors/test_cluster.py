"""A whole cluster in one process under virtual time: deterministic by seed, killable, clean."""

from __future__ import annotations

import asyncio
import time

from dvrt.actors.actor import Actor, Context
from dvrt.processes.task_nursery import TaskNursery
from dvrt.processes.worker_process import WorkerBoot, worker_main
from dvrt.protocol.messages import Joined
from dvrt.virtual import run_virtual
from dvrt.wire import Message, message
from tests.actors.crew import SECRET, make_node

RUN_RING = "tests.actors.test_cluster:run_ring_worker"


@message("test.link")
class LinkTo(Message):
    """Pass the ball to this actor."""

    next_actor: str


@message("test.ball")
class Ball(Message):
    number: int
    passes: int


class RingWorker(Actor):
    """Holds each ball for a while that the ball decides, then passes it on."""

    async def receive(self, message: Message, context: Context) -> Message | None:
        if isinstance(message, LinkTo):
            self.next = self.node.ref(message.next_actor)
        elif isinstance(message, Ball):
            await asyncio.sleep(1 + message.number % 3)
            await self.next.tell(Ball(number=message.number, passes=message.passes + 1))
        return None


async def run_ring_worker(boot: WorkerBoot) -> int:
    return await worker_main(boot, lambda _: RingWorker())


class Ring(Actor):
    """The controller: closes the ring, throws the balls in and logs every round and every loss."""

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self.workers: dict[str, str] = {}
        self.log: list[tuple[float, str]] = []

    def note(self, text: str) -> None:
        self.log.append((round(asyncio.get_running_loop().time(), 6), text))

    async def receive(self, message: Message, context: Context) -> None:
        if isinstance(message, Joined):
            await self._joined(message)
        elif isinstance(message, Ball):
            self.note(f"ball {message.number} passed {message.passes}")
            await self.first.tell(Ball(number=message.number, passes=message.passes + 1))

    async def _joined(self, joined: Joined) -> None:
        self.note(f"{joined.worker} joined")
        self.workers[joined.worker] = joined.host_actor
        ref = self.node.ref(joined.host_actor)
        self.node.watch(ref, lambda _, why: self.note(f"{joined.worker} lost: {why}"))
        if len(self.workers) == self.n_workers:
            refs = list(self.workers.values())
            for actor, successor in zip(refs, [*refs[1:], str(self.me)], strict=True):
                await self.node.ref(actor).tell(LinkTo(next_actor=successor))
            self.first = self.node.ref(refs[0])
            for number in range(5):
                await self.first.tell(Ball(number=number, passes=0))


async def play(seconds: float, *, kill_after: float | None = None) -> list[tuple[float, str]]:
    async with make_node("local", "controller") as node:
        ring = Ring(n_workers=4)
        me = node.spawn(ring, name="ring")
        async with TaskNursery() as nursery:
            workers = []
            for i in range(4):
                boot = WorkerBoot(name=f"w{i}", controller=str(me), secret=SECRET)
                workers.append(await nursery.spawn(RUN_RING, boot, name=boot.name))
            await asyncio.sleep(kill_after or seconds)
            if kill_after is not None:
                workers[2].kill()
                ring.note((await workers[2].wait()).reason)
                await asyncio.sleep(seconds - kill_after)
    ring.note("over")
    return ring.log


def test_an_hour_takes_seconds() -> None:
    began = time.monotonic()
    log = run_virtual(play(3600.0), seed=1)
    assert time.monotonic() - began < 30
    assert 3600 <= log[-1][0] < 3605 and log[-1][1] == "over"
    assert len(log) > 1000


def test_the_same_seed_gives_the_same_log_and_others_differ() -> None:
    logs = {seed: run_virtual(play(30.0, kill_after=10.0), seed=seed) for seed in (1, 2, 3)}
    for seed, log in logs.items():
        assert run_virtual(play(30.0, kill_after=10.0), seed=seed) == log
    assert len({str(log) for log in logs.values()}) > 1


def test_a_killed_worker_is_noticed_by_its_controller_at_once() -> None:
    log = run_virtual(play(30.0, kill_after=10.0), seed=4)
    lost = [(when, text) for when, text in log if "lost" in text and when < 30]
    assert len(lost) == 1
    when, text = lost[0]
    assert when == 10.0 and text.startswith("w2 lost: its node is gone")
    assert (10.0, "killed by SIGKILL") in log
    assert not [text for when, text in log if when > 24 and "passed" in text]
