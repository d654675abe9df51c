"""A small program that embeds a controller: starts workers, says who they are, and serves.

Run as ``python controller_program.py {plain|heir}``; with ``heir`` it forks a child that inherits
all its sockets and outlives it. Prints one line: fork server, heir, workers.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from dvrt.actors.actor import Actor, Context
from dvrt.actors.node import Node
from dvrt.processes.nursery import Nursery
from dvrt.processes.worker_process import WorkerBoot
from dvrt.protocol.messages import Joined
from dvrt.wire import Message

SECRET = b"a secret of the tests"
N_WORKERS = 3
LEASE_S = 0.8


class Controller(Actor):
    def __init__(self) -> None:
        self.joined: asyncio.Queue[Joined] = asyncio.Queue()

    async def receive(self, message: Message, context: Context) -> None:
        assert isinstance(message, Joined)
        self.joined.put_nowait(message)


async def main(kind: str) -> None:
    async with Node(name="controller", secret=SECRET) as node:
        controller = Controller()
        me = node.spawn(controller, name="controller")
        async with Nursery(preload=["tests.actors.crew"], orphan_s=20.0) as nursery:
            for i in range(N_WORKERS):
                boot = WorkerBoot(name=f"w{i}", controller=str(me), secret=SECRET, lease_s=LEASE_S)
                await nursery.spawn("tests.actors.crew:serve", boot, name=boot.name)
            joined = [await controller.joined.get() for _ in range(N_WORKERS)]
            heir = os.fork() if kind == "heir" else 0
            if kind == "heir" and not heir:
                time.sleep(600)
            print(nursery.server_pid, heir, *(each.pid for each in joined), flush=True)
            await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
