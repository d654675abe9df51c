"""Any bit of any message of a link, either way, inverted: no success without the bytes."""

import asyncio
import contextlib

import pytest

from dvrt.errors import DvrtError
from dvrt.kv.spans import Span
from dvrt.streaming import Setups, open_link, stream_in, stream_out
from dvrt.transport import get_transport
from dvrt.transport.faults import Direction, Fault, FaultKind, RandomFaults
from dvrt.transport.faulty import FaultyTransport

WHOLE = Span.of(0, 2)
BOTH = (Direction.SEND, Direction.RECEIVE)
TELLING = (2192, 5527, 5916, 9273, 11055)
"""Seeds with which a sender succeeds that sent nothing, if headers are not checked."""


async def drain(boxes):
    async with contextlib.aclosing(boxes):
        async for _ in boxes:
            pass


async def streamed(tools, faults, name="kv"):
    """Whether the sender of a stream was told that all is well, and the cache at the receiver."""
    side = tools.one_sided(n_layers=2, requests=(0,))
    faulty = FaultyTransport(get_transport("local"), faults)
    async with tools.kits() as (here, there), tools.channels("local") as [pair]:
        a, b = (faulty.wrap(end) for end in pair)
        opening = [
            open_link(end, kit, tools.SETUP, deadline_s=0.05)
            for end, kit in ((a, here), (b, there))
        ]
        links = await asyncio.gather(*opening, return_exceptions=True)
        [ours], [theirs] = (
            tools.caches(kit.device, side, tools.ONE, order, tokens=2)
            for kit, order in ((here, "LCBHTD"), (there, "LCBTHD"))
        )
        tools.fill(tools.array(ours), ours.layout, side, tools.ONE, 0, WHOLE)
        try:
            for error in links:
                if isinstance(error, BaseException):
                    assert isinstance(error, DvrtError), error
                    return False, None, None
            one, other = ({tools.ONE: link} for link in links)
            setups = Setups(source=side, target=side, wire=theirs.layout)
            sent, _ = await asyncio.gather(
                stream_out(here, name, setups, tools.ONE, [ours], one, WHOLE, deadline_s=0.05),
                drain(
                    stream_in(
                        *(there, name, setups, tools.ONE, [theirs], other, WHOLE), deadline_s=0.05
                    )
                ),
                return_exceptions=True,
            )
            assert sent is None or isinstance(sent, DvrtError), sent
            return sent is None, theirs, side
        finally:
            await asyncio.gather(
                *(link.aclose() for link in links if not isinstance(link, BaseException))
            )
            for end in (a, b):
                end.abort()
                await end.quiet()


@pytest.mark.virtual
@pytest.mark.parametrize(("what", "n_bytes"), [("grant", 64), ("offer", 170)])
async def test_every_bit_of_the_first_message(tools, what, n_bytes):
    """The grant has the last step that the receiver has: what is behind it is not sent."""
    n_proved = 0
    for place in range(8 * n_bytes):
        fault = Fault(
            kind=FaultKind.FLIP,
            message=1,
            direction=Direction.RECEIVE,
            channel=0 if what == "grant" else 1,
            byte=place // 8,
            bit=place % 8,
        )
        is_proved, cache, side = await streamed(tools, [fault])
        if is_proved:
            n_proved += 1
            tools.ensure_filled(cache, side, tools.ONE, 0, WHOLE)
    assert n_proved == 0


@pytest.mark.virtual
@pytest.mark.parametrize("seeds", [TELLING, *(range(n, n + 250) for n in (0, 250, 500))])
async def test_bits_anywhere_in_both_directions(tools, seeds):
    outcomes = []
    for seed in seeds:
        faults = RandomFaults(
            seed=seed, rates={FaultKind.FLIP: 0.08}, bytes_below=1 << 16, directions=BOTH
        )
        is_proved, cache, side = await streamed(tools, faults)
        outcomes.append(is_proved)
        if is_proved:
            tools.ensure_filled(cache, side, tools.ONE, 0, WHOLE)
    assert any(outcomes) or seeds is TELLING
    assert not all(outcomes)
