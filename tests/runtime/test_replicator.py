"""One stage's copies and a holder that cannot be reached for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dvrt.control.steps import Step
from dvrt.errors import ActorGone
from dvrt.kv.spans import Span
from dvrt.protocol.messages import LogRange, Replicate
from dvrt.stages.compute import LoopCompute
from dvrt.stages.ledger import Copy
from dvrt.stages.replicator import RETRY_S, Replicator

HOLDER = "local://elsewhere/replicas"


class OneLog:
    """Stands for a ledger with one log, of one byte an entry."""

    def __init__(self) -> None:
        self.length = self.sent = self.n_packed = 0

    def copy_for(self, holder: str, n_entries: int) -> Copy:
        start, self.sent = self.sent, self.length
        self.n_packed += self.length - start
        if start == self.length:
            return Copy(ranges=(), packed=b"", is_all=True)
        reach = LogRange(slot=0, seq=1, epoch=1, start=start, stop=self.length)
        return Copy(ranges=(reach,), packed=bytes(self.length - start), is_all=True)

    def mark_lost(self, holder: str, slots: Any = None) -> None:
        self.sent = 0

    forget = mark_lost


class Road:
    """Stands for a node: what is told arrives, or raises while the road is closed."""

    address = "local://here"

    def __init__(self) -> None:
        self.is_open = True
        self.n_tries = 0
        self.arrived: list[Replicate] = []

    def ref(self, actor: str) -> Road:
        return self

    async def tell(self, note: Replicate, region: Any) -> None:
        self.n_tries += 1
        if not self.is_open:
            raise ActorGone("nobody is there")
        self.arrived.append(note)


class Silent:
    """Stands for the log of copies."""

    clock = property(lambda self: self)

    def time(self) -> float:
        return 0.0

    def add(self, *given: Any) -> None:
        pass


def make() -> tuple[Replicator, OneLog, Road, Callable[[int], None]]:
    ledger, road = OneLog(), Road()
    replicator = Replicator(
        road,  # type: ignore[arg-type]
        LoopCompute(),
        ledger,  # type: ignore[arg-type]
        origin="local://here/p0-s0",
        pipeline=0,
        stage=0,
        layers=Span.of(0, 1),
        entry_bytes=1,
        copies=Silent(),  # type: ignore[arg-type]
    )

    def step(number: int) -> None:
        ledger.length += 1
        replicator.stepped(Step(id=number, microbatch=0), is_busy=False)

    return replicator, ledger, road, step


@pytest.mark.virtual
async def test_the_last_step_is_copied_without_another():
    replicator, ledger, road, step = make()
    replicator.connect([HOLDER])
    for number in range(9):
        step(number)
        await asyncio.sleep(0.004)
    await asyncio.sleep(1.0)
    await replicator.aclose()
    assert road.arrived[-1].step == 8
    assert road.arrived[-1].ranges[-1].stop == ledger.length


@pytest.mark.virtual
async def test_a_holder_that_cannot_be_reached_gets_all_as_soon_as_it_can():
    """No step has to come meanwhile, and trying costs little."""
    replicator, ledger, road, step = make()
    replicator.connect([HOLDER])
    road.is_open = False
    for number in range(20):
        step(number)
        await asyncio.sleep(0.004)
    await asyncio.sleep(2.0)
    n_tries = road.n_tries
    assert 1 < n_tries <= 2 + 2.1 / RETRY_S
    road.is_open = True
    await asyncio.sleep(2 * RETRY_S)
    await replicator.aclose()
    assert [(each.step, each.ranges[0].start, each.ranges[0].stop) for each in road.arrived] == [
        (19, 0, 20)
    ]
    assert ledger.n_packed <= 20 * (n_tries + 1)
