"""Links over networks that fail on purpose, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from dvrt.actors.limits import NodeLimits
from dvrt.errors import ActorGone, AskTimeout, WireError
from dvrt.transport import get_transport
from dvrt.transport.faults import Fault, FaultKind, RandomFaults
from dvrt.transport.faulty import FaultyTransport
from dvrt.virtual import run_virtual
from tests.actors.crew import Oracle, Text, make_node


@pytest.mark.virtual
async def test_a_link_that_is_cut_is_told_once_and_made_anew() -> None:
    cut = Fault(kind=FaultKind.CUT, message=12, channel=0, byte=5)
    network = FaultyTransport(get_transport("local"), [cut])
    async with make_node("local", "a", network=network) as a, make_node("local", "b") as b:
        oracle = a.ref(str(b.spawn(Oracle(), name="oracle")))
        told: list[str] = []
        a.watch(oracle, lambda _, why: told.append(why))
        asks = [asyncio.create_task(oracle.ask(Text(text=f"{i}"), deadline_s=5)) for i in range(50)]
        await asyncio.wait(asks)
        kinds = {type(ask.exception()) for ask in asks}
        assert ActorGone in kinds and kinds <= {ActorGone, type(None)}
        assert len(told) == 1 and "its node is gone" in told[0]
        assert await oracle.ask(Text(text="anew"), deadline_s=5) == Text(text="ANEW")


FAULTS = dict.fromkeys(FaultKind, 0.05)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_network_does_asks_end_and_the_next_link_works(seed) -> None:
    async def scenario() -> None:
        plan = RandomFaults(seed=seed, rates=FAULTS, bytes_below=100)
        network = FaultyTransport(get_transport("local"), plan)
        limits = NodeLimits(transfer_s=2, stop_s=0.5)
        async with make_node("local", "b", limits=limits) as b:
            b.spawn(Oracle(), name="oracle")
            async with make_node("local", "a", network=network, limits=limits) as a:
                oracle = a.ref(f"{b.address}/oracle")
                for i in range(30):
                    asks = [oracle.ask(Text(text=f"{i}"), b"tail", deadline_s=3) for _ in range(4)]
                    results = await asyncio.gather(*asks, return_exceptions=True)
                    for each in results:
                        assert isinstance(each, Text | ActorGone | AskTimeout | WireError), each
                    if any(isinstance(each, AskTimeout) for each in results):
                        a.fence(b.address, "it does not answer")
                        a._peers._fenced.clear()
                assert a.statistics().asks == 0
            async with make_node("local", "c") as c:
                oracle = c.ref(f"{b.address}/oracle")
                assert await oracle.ask(Text(text="x"), deadline_s=5) == Text(text="X")

    run_virtual(scenario(), seed=seed)
