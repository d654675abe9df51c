"""What runs in a worker: a node, one actor, and its tenure under the controller.

The same coroutine runs in a process of its own or, in a stand-in, as a task among others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import dvrt
from dvrt.actors.actor import Actor
from dvrt.actors.cell import STOPPED
from dvrt.actors.limits import NodeLimits
from dvrt.actors.node import Node, household
from dvrt.actors.ref import ActorRef, split_ref
from dvrt.errors import ConfigError
from dvrt.processes.lease import NoWatchdog, ProcessWatchdog
from dvrt.processes.tenure import Custodian, Tenure
from dvrt.protocol.claims import CUSTODIAN
from dvrt.protocol.messages import ARCHIVE, REPLICAS, Joined
from dvrt.transport.tcp import split_host_port
from dvrt.wire import Message, decode, encode, message

FAILED = 1
LEASE_ENDED = 3
TERMINATED = 128 + signal.SIGTERM
STOP_S = 2.0
"""How long a worker's actor may take for its last message, and again for ``on_stop``."""
WATCHDOG_STOP_S = 8.0
"""When a worker that ends has to have ended."""

Target = Callable[[Any], Awaitable[int | None]]
_log = logging.getLogger("dvrt.processes")


@message("worker.boot")
class WorkerBoot:
    """What a worker must know to join a cluster; ``controller`` is an actor's address.

    ``address`` is where its node listens; empty: at the interface that leads to the controller.
    ``replica_bytes`` bounds the copies that it keeps of others' logs; 0 is no limit. It joins
    ``start_s`` after its beginning at the earliest. In the directory ``persist``, if one is given,
    it keeps the logs of its own stages. It belongs to life ``generation`` of its controller; when
    that is gone, it waits ``orphan_grace_s`` for a later one.
    """

    name: str
    controller: str
    secret: bytes
    heartbeat_s: float = 0.2
    lease_s: float = 10.0
    address: str = ""
    replica_bytes: int = 0
    start_s: float = 0.0
    persist: str = ""
    orphan_grace_s: float = 0.0
    generation: int = 0


def terms_of(boot: WorkerBoot) -> bytes:
    """All that must be the same for a worker to be as good as one with this boot."""
    general = replace(boot, name="", secret=b"", address="", start_s=0.0, generation=0)
    return dvrt.__version__.encode() + encode(general)


async def worker_main(boot: WorkerBoot, make_actor: Callable[[WorkerBoot], Actor]) -> int:
    """Join the cluster and live until the actor or the lease ends; returns the exit code.

    That is 0 when it or the controller's actor was stopped, FAILED when it failed, LEASE_ENDED
    when the controller is gone and no later life of it has come. Cancelled, it stops the actor and
    leaves. In a process of its own a watchdog sees to it that all this does not take for ever.
    Raises ConfigError for a bad boot.
    """
    over: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def end(code: int, reason: str) -> None:
        if not over.done():
            over.set_result((code, reason))

    address = boot.address or await address_towards(boot.controller)
    limits = NodeLimits(stop_s=STOP_S, flush_s=STOP_S / 2)
    node = Node(name=boot.name, secret=boot.secret, address=address, role="worker", limits=limits)
    async with node:
        tenure = Tenure(
            node,
            node.ref(boot.controller),
            interval_s=boot.heartbeat_s,
            length_s=boot.lease_s,
            grace_s=boot.orphan_grace_s,
            generation=boot.generation,
            watchdog=ProcessWatchdog() if household.get() is None else NoWatchdog(),
            on_end=lambda why, is_orderly: end(0 if is_orderly else LEASE_ENDED, why),
        )
        try:
            me = node.spawn(make_actor(boot), name=boot.name)
            node.watch(me, lambda _, why: end(0 if why.startswith(STOPPED) else FAILED, why))
            joined = _joined(boot, me)
            if boot.orphan_grace_s:
                custodian = Custodian(tenure, joined, terms=terms_of(boot))
                node.spawn(custodian, name=CUSTODIAN)
            await node.ref(boot.controller).tell(joined, sender=me)
            code, reason = await over
        finally:
            tenure.close(stop_s=WATCHDOG_STOP_S)
    tenure.over()
    _log.log(logging.WARNING if code else logging.INFO, "worker %s ends: %s", boot.name, reason)
    return code


def _joined(boot: WorkerBoot, me: ActorRef) -> Joined:
    return Joined(
        worker=boot.name,
        pid=os.getpid(),
        host_actor=me.address,
        replica_actor=f"{me.node_address}/{REPLICAS}",
        archive_actor=f"{me.node_address}/{ARCHIVE}" if boot.persist else "",
    )


async def address_towards(actor: str) -> str:
    """Where a node that is to be reached by this actor's node should listen, on any free port."""
    node_address, _ = split_ref(actor)
    if not node_address.startswith("tcp://"):
        return node_address.partition("://")[0] + "://"
    host, port = split_host_port(node_address)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, _, _, _, name = found[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        probe.connect(name)  # sends nothing; the kernel picks the interface
        own = probe.getsockname()[0]
    return f"tcp://[{own}]:0" if ":" in own else f"tcp://{own}:0"


def resolve(target: str) -> Target:
    """The function that ``package.module:function`` names. Raises ConfigError."""
    module, separator, name = target.partition(":")
    if not separator:
        raise ConfigError(f"target {target!r}: expected package.module:function")
    try:
        function: Target = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"target {target!r}: {error}") from error
    return function


def loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """``asyncio``, ``uvloop``, or ``auto``: uvloop where it is installed. Raises ConfigError."""
    if kind == "asyncio":
        return asyncio.new_event_loop
    if kind not in ("auto", "uvloop"):
        raise ConfigError(f"loop {kind!r}: expected auto, asyncio or uvloop")
    try:
        import uvloop
    except ImportError:
        if kind == "uvloop":
            raise ConfigError("loop 'uvloop': it is not installed") from None
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def run_to_exit(target: str, arguments: Message | bytes, *, loop: str = "auto") -> int:
    """Run ``await target(arguments)`` and return the exit code for ``os._exit``, which must follow.

    The loop is not closed: what still runs in its threads ends with the process. SIGTERM cancels
    the coroutine (TERMINATED). An error is printed (FAILED). Bytes are decoded once the target's
    module is imported.
    """
    try:
        function = resolve(target)
        value = decode(arguments) if isinstance(arguments, bytes) else arguments
        runner = asyncio.Runner(loop_factory=loop_factory(loop))
        return runner.run(_until_terminated(function(value)))
    except BaseException:
        traceback.print_exc()
        return FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


async def _until_terminated(work: Awaitable[int | None]) -> int:
    task = asyncio.ensure_future(work)
    is_terminated = False

    def terminate() -> None:
        nonlocal is_terminated
        is_terminated = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task or 0
    except asyncio.CancelledError:
        if not is_terminated:
            raise
        return TERMINATED
