"""Every transport keeps every promise of the contract, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from dvrt.buffers import Region
from dvrt.transport import Transport, get_transport
from dvrt.transport.conformance import (
    CHANNEL_CHECKS,
    CLOGGED_CHECKS,
    LISTENER_CHECKS,
    ChannelCheck,
    ListenerCheck,
    open_pair,
    run_channel_check,
    run_listener_check,
)
from dvrt.transport.faulty import FaultyTransport
from dvrt.transport.shm import ShmTransport

TRANSPORTS: dict[str, tuple[Callable[[], Transport], str]] = {
    "local": (lambda: get_transport("local"), "local://"),
    "tcp": (lambda: get_transport("tcp"), "tcp://127.0.0.1:0"),
    "tcp6": (lambda: get_transport("tcp"), "tcp://[::1]:0"),
    "shm": (lambda: ShmTransport(arena_bytes=16 << 20), "shm://"),
    "auto": (lambda: get_transport("auto"), "auto://127.0.0.1:0"),
    "ucx": (lambda: get_transport("ucx"), "ucx://127.0.0.1:0"),
    "faulty-local": (lambda: FaultyTransport(get_transport("local")), "local://"),
    "faulty-tcp": (lambda: FaultyTransport(get_transport("tcp")), "tcp://127.0.0.1:0"),
}


PARAMETERS = [
    pytest.param(name, marks=pytest.mark.ucx) if name == "ucx" else name for name in TRANSPORTS
]


@pytest.fixture(params=PARAMETERS)
def transport_at(request: pytest.FixtureRequest) -> tuple[Transport, str]:
    make, address = TRANSPORTS[request.param]
    return make(), address


async def warm_up(transport: Transport, address: str) -> None:
    """What UCX opens for its loop stays as long as the loop: before a check counts files."""
    if transport.scheme == "ucx":
        async with open_pair(transport, address) as (a, b):
            for _ in range(2):
                a, b = b, a
                sending = asyncio.create_task(a.send(b"", Region.of(bytes(1 << 20))))
                await (await b.receive()).take()
                await sending


@pytest.mark.parametrize(
    "check", [*CHANNEL_CHECKS, *CLOGGED_CHECKS], ids=lambda check: check.__name__
)
async def test_channel(
    check: ChannelCheck, transport_at: tuple[Transport, str], loop_kind: str
) -> None:
    await warm_up(*transport_at)
    await run_channel_check(check, partial(open_pair, *transport_at))


@pytest.mark.parametrize("check", LISTENER_CHECKS, ids=lambda check: check.__name__)
async def test_listener(
    check: ListenerCheck, transport_at: tuple[Transport, str], loop_kind: str
) -> None:
    await warm_up(*transport_at)
    await run_listener_check(check, *transport_at)
