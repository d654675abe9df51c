"""Every transport keeps every promise of the contract, on both event loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

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
    "faulty-local": (lambda: FaultyTransport(get_transport("local")), "local://"),
    "faulty-tcp": (lambda: FaultyTransport(get_transport("tcp")), "tcp://127.0.0.1:0"),
}


@pytest.fixture(params=TRANSPORTS)
def transport_at(request: pytest.FixtureRequest) -> tuple[Transport, str]:
    make, address = TRANSPORTS[request.param]
    return make(), address


@pytest.mark.parametrize(
    "check", [*CHANNEL_CHECKS, *CLOGGED_CHECKS], ids=lambda check: check.__name__
)
async def test_channel(
    check: ChannelCheck, transport_at: tuple[Transport, str], loop_kind: str
) -> None:
    await run_channel_check(check, partial(open_pair, *transport_at))


@pytest.mark.parametrize("check", LISTENER_CHECKS, ids=lambda check: check.__name__)
async def test_listener(
    check: ListenerCheck, transport_at: tuple[Transport, str], loop_kind: str
) -> None:
    await run_listener_check(check, *transport_at)
