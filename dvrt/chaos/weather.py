"""The network of workers that are tasks: each can be silenced or slowed, in either direction, and
two of them parted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

import dvrt.transport
from dvrt.actors.peers import Network
from dvrt.transport.base import Channel, ChannelHandler, Listener
from dvrt.transport.faults import Direction, Fault, FaultKind
from dvrt.transport.faulty import FaultyTransport
from dvrt.transport.registry import get_transport

BOTH = (Direction.SEND, Direction.RECEIVE)


@dataclass(slots=True)
class WorkerWeather:
    """What meets the messages of one worker; a FaultPlan that looks at the loop's time."""

    silent_until: dict[Direction, float] = field(default_factory=dict)
    apart_until: dict[str, float] = field(default_factory=dict)
    slow_until: float = 0.0
    delay_s: float = 0.0

    def fault(self, channel: int, direction: Direction, message: int) -> Fault | None:
        return self.delay(direction, message, 0.0)

    def delay(self, direction: Direction, message: int, until: float) -> Fault | None:
        """A message waits until then, or for longer if the worker is silent or slow."""
        now = asyncio.get_running_loop().time()
        wait_s = max(self.silent_until.get(direction, 0.0), until) - now
        if wait_s <= 0 and now < self.slow_until:
            wait_s = self.delay_s
        if wait_s <= 0:
            return None
        return Fault(kind=FaultKind.DELAY, message=message, direction=direction, seconds=wait_s)


@dataclass(frozen=True, slots=True)
class _Way:
    """The weather of the channels that a worker has opened to the node at ``address``."""

    weather: WorkerWeather
    address: str

    def fault(self, channel: int, direction: Direction, message: int) -> Fault | None:
        until = self.weather.apart_until.get(self.address, 0.0)
        return self.weather.delay(direction, message, until)


class _Surroundings:
    """The network as one worker sees it."""

    def __init__(self, weather: WorkerWeather) -> None:
        self._weather = weather
        self._inner = get_transport("local")

    async def connect(self, address: str, *, deadline_s: float) -> Channel:
        transport = FaultyTransport(self._inner, _Way(self._weather, address))
        return await transport.connect(address, deadline_s=deadline_s)

    async def listen(self, address: str, handler: ChannelHandler) -> Listener:
        return await FaultyTransport(self._inner, self._weather).listen(address, handler)


class Weather:
    """The weather of every worker by name; ``network`` is made for ``dvrt.actors.node.wiring``."""

    def __init__(self, workers: str = "worker-") -> None:
        self._prefix = workers
        self._workers: dict[str, WorkerWeather] = {}

    def network(self, node: str) -> Network:
        if not node.startswith(self._prefix):
            return dvrt.transport
        return _Surroundings(self.at(node))

    def at(self, node: str) -> WorkerWeather:
        return self._workers.setdefault(node, WorkerWeather())

    def silence(self, node: str, seconds: float, directions: Iterable[Direction] = BOTH) -> None:
        """Hold back what the worker sends and what is sent to it; it comes when that is over."""
        until = asyncio.get_running_loop().time() + seconds
        self.at(node).silent_until |= dict.fromkeys(directions, until)

    def part(self, one: str, other: str, addresses: tuple[str, str], seconds: float) -> None:
        """Hold back for so long what the two, whose nodes have these addresses, send each other."""
        until = asyncio.get_running_loop().time() + seconds
        for name, address in ((one, addresses[1]), (other, addresses[0])):
            known = self.at(name).apart_until
            known[address] = max(known.get(address, 0.0), until)

    def slow(self, node: str, seconds: float, delay_s: float) -> None:
        """For so long, every message takes ``delay_s`` longer."""
        weather = self.at(node)
        weather.slow_until = asyncio.get_running_loop().time() + seconds
        weather.delay_s = delay_s
