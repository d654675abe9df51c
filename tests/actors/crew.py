"""Messages, actors and worker targets that the tests of the actor runtime share."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dvrt.actors.actor import Actor, Context
from dvrt.actors.limits import NodeLimits
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.errors import OutOfMemory, RequestRejected
from dvrt.processes.worker_process import WorkerBoot, worker_main
from dvrt.wire import Message, message

SECRET = b"a secret of the tests"


@message("test.text")
class Text(Message):
    text: str
    number: int = 0


@message("test.order")
class Order(Message):
    """What a worker target should do."""

    what: str
    text: str = ""


class Recorder(Actor):
    """Keeps what it gets; ``gate`` may hold it up."""

    def __init__(self) -> None:
        self.got: list[tuple[Message, Context]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.stopped: list[str] = []

    async def receive(self, message: Message, context: Context) -> Message | None:
        self.got.append((message, context))
        await self.gate.wait()
        return None

    async def on_stop(self, reason: str) -> None:
        self.stopped.append(reason)

    @property
    def texts(self) -> list[str]:
        return [message.text for message, _ in self.got]

    async def wait_for(self, count: int) -> None:
        while len(self.got) < count:
            await asyncio.sleep(0.001)


class Oracle(Actor):
    """Answers questions, in more ways than one."""

    async def receive(self, message: Message, context: Context) -> Message | None:
        assert isinstance(message, Text)
        match message.text:
            case "nothing":
                return None
            case "reject":
                raise RequestRejected("no such colour", param="colour")
            case "memory":
                raise OutOfMemory("attic", needed_bytes=7, free_bytes=3)
            case "crash":
                raise ValueError("the oracle broke")
            case "sleep":
                await asyncio.sleep(60)
            case "stop":
                self.stop("it was asked to")
            case "rubbish":
                return "not a message"  # type: ignore[return-value]
        return Text(text=message.text.upper(), number=sum(map(len, context.attachments)))


def make_node(scheme: str = "local", name: str = "node", **options: object) -> Node:
    address = "tcp://127.0.0.1:0" if scheme == "tcp" else "local://"
    options.setdefault("limits", NodeLimits(stop_s=0.5, flush_s=0.5))
    return Node(name=name, address=address, secret=SECRET, strict=True, **options)


@asynccontextmanager
async def two_nodes(scheme: str, **options: object) -> AsyncIterator[tuple[Node, Node]]:
    async with make_node(scheme, "a", **options) as a, make_node(scheme, "b", **options) as b:
        yield a, b


class Pair:
    """A node to talk from and one to talk to; the same one for ``same node``."""

    def __init__(self, place: str, **options) -> None:
        self._place = place
        self._nodes = two_nodes("tcp" if place == "tcp" else "local", **options)

    async def __aenter__(self) -> tuple[Node, Node]:
        a, b = await self._nodes.__aenter__()
        return (a, a) if self._place == "same node" else (a, b)

    async def __aexit__(self, *exc) -> None:
        await self._nodes.__aexit__(*exc)


def seen_from(node: Node, ref: ActorRef) -> ActorRef:
    """The same reference, as this node would use it."""
    return node.ref(str(ref))


async def wait_until(condition: object, limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.001)


# Targets of nurseries.


async def obey(order: Order) -> int | None:
    match order.what:
        case "return":
            return int(order.text)
        case "fail":
            raise ValueError(order.text)
        case "print":
            print(order.text)
        case "pid":
            print(os.getpid(), os.getppid(), os.getsid(0))
        case "files":
            print(" ".join(sorted(os.listdir("/proc/self/fd"), key=int)))
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            print("these are my last words", flush=True)
            os.abort()
        case "loop":
            print(type(asyncio.get_running_loop()).__module__)
        case "environment":
            print(os.environ.get(order.text))
        case "polite":
            try:
                await asyncio.sleep(600)
            finally:
                print("goodbye", flush=True)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            await asyncio.sleep(600)
    return None


class Worker(Actor):
    """A worker's actor that can be told to misbehave."""

    async def receive(self, message: Message, context: Context) -> Message | None:
        assert isinstance(message, Text)
        match message.text:
            case "block":
                time.sleep(600)
            case "hold the interpreter":
                ctypes.PyDLL(None).usleep(600_000_000)
            case "crash":
                raise ValueError("the worker broke")
            case "stop":
                self.stop("it was asked to")
        return message


async def serve(boot: WorkerBoot) -> int:
    return await worker_main(boot, lambda _: Worker())


async def rest(order: Order) -> None:
    await asyncio.sleep(1_000_000)
