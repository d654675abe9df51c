"""Whether a transport keeps the promises of ``base``: run these on a new one until they pass.

Needs no test framework; a broken promise is an AssertionError that says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
from collections.abc import AsyncIterator

from dvrt.transport.base import Transport
from dvrt.transport.channel_checks import CHANNEL_CHECKS as CHANNEL_CHECKS
from dvrt.transport.channel_checks import CLOGGED_CHECKS as CLOGGED_CHECKS
from dvrt.transport.channel_checks import ChannelCheck as ChannelCheck
from dvrt.transport.expecting import MakePair as MakePair
from dvrt.transport.expecting import expect, settle
from dvrt.transport.expecting import open_pair as open_pair
from dvrt.transport.listener_checks import LISTENER_CHECKS as LISTENER_CHECKS
from dvrt.transport.listener_checks import ListenerCheck as ListenerCheck

_GRACE_S = 2.0
_FILES_LOOKED_AT = 1024


async def check_channel(make_pair: MakePair, make_clogged_pair: MakePair | None = None) -> None:
    """Run every check of a channel, each on a fresh pair, and see that nothing is left.

    ``make_pair`` returns an async context manager that yields two connected channels and releases
    them. ``make_clogged_pair`` yields a pair whose first channel has no more room, for transports
    that can bring that about; without it those checks fill a fresh pair themselves.
    """
    for check in CHANNEL_CHECKS:
        await run_channel_check(check, make_pair)
    for check in CLOGGED_CHECKS:
        await run_channel_check(check, make_clogged_pair or make_pair)


async def check_listener(transport: Transport, address: str) -> None:
    """Run every check of connecting and accepting; ``address`` lets the transport pick a name."""
    for check in LISTENER_CHECKS:
        await run_listener_check(check, transport, address)


async def run_channel_check(check: ChannelCheck, make_pair: MakePair) -> None:
    async with _leaving_nothing(check.__name__), make_pair() as pair:
        await check(pair)


async def run_listener_check(check: ListenerCheck, transport: Transport, address: str) -> None:
    async with _leaving_nothing(check.__name__):
        await check(transport, address)


@contextlib.asynccontextmanager
async def _leaving_nothing(name: str) -> AsyncIterator[None]:
    """Tasks and file descriptors of the block must be gone soon after it."""
    tasks, files = asyncio.all_tasks(), _open_files()
    yield
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + _GRACE_S
    while asyncio.all_tasks() - tasks or _open_files() - files:
        gc.collect()
        left = [task.get_name() for task in asyncio.all_tasks() - tasks]
        left_files = sorted(_open_files() - files)
        expect(loop.time() < give_up_at, f"{name} left tasks {left} and files {left_files}")
        await settle(1)
        await asyncio.sleep(0.005)


def _open_files() -> set[int]:
    """The file descriptors in use, as far as a program normally gets; asks without blocking."""
    found = set()
    for number in range(_FILES_LOOKED_AT):
        with contextlib.suppress(OSError):
            fcntl.fcntl(number, fcntl.F_GETFD)
            found.add(number)
    return found
