"""The network of workers that are tasks: each can be silenced or slowed, in either direction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import dvrt.transport
from dvrt.actors.peers import Network
from dvrt.transport.faults import Direction, Fault, FaultKind
from dvrt.transport.faulty import FaultyTransport
from dvrt.transport.registry import get_transport

BOTH = (Direction.SEND, Direction.RECEIVE)


@dataclass(slots=True)
class WorkerWeather:
    """What meets the messages of one worker; a FaultPlan that looks at the loop's time."""

    silent_until: dict[Direction, float] = field(default_factory=dict)
    slow_until: float = 0.0
    delay_s: float = 0.0

    def fault(self, channel: int, direction: Direction, message: int) -> Fault | None:
        now = asyncio.get_running_loop().time()
        wait_s = self.silent_until.get(direction, 0.0) - now
        if wait_s <= 0 and now < self.slow_until:
            wait_s = self.delay_s
        if wait_s <= 0:
            return None
        return Fault(kind=FaultKind.DELAY, message=message, direction=direction, seconds=wait_s)


class Weather:
    """The weather of every worker by name; ``network`` is made for ``dvrt.actors.node.wiring``."""

    def __init__(self, workers: str = "worker-") -> None:
        self._prefix = workers
        self._workers: dict[str, WorkerWeather] = {}

    def network(self, node: str) -> Network:
        if not node.startswith(self._prefix):
            return dvrt.transport
        return FaultyTransport(get_transport("local"), self.at(node))

    def at(self, node: str) -> WorkerWeather:
        return self._workers.setdefault(node, WorkerWeather())

    def silence(self, node: str, seconds: float, directions: Iterable[Direction] = BOTH) -> None:
        """Hold back what the worker sends and what is sent to it; it comes when that is over."""
        until = asyncio.get_running_loop().time() + seconds
        self.at(node).silent_until |= dict.fromkeys(directions, until)

    def slow(self, node: str, seconds: float, delay_s: float) -> None:
        """For so long, every message takes ``delay_s`` longer."""
        weather = self.at(node)
        weather.slow_until = asyncio.get_running_loop().time() + seconds
        weather.delay_s = delay_s
