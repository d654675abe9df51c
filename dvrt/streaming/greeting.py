"""How a link begins: both ends say who they are, compare, and only then move a byte of KV."""

from __future__ import annotations

from dvrt.errors import ConfigError, ProtocolError
from dvrt.streaming.contiguous import deadline
from dvrt.streaming.headers import pack, unpack
from dvrt.streaming.kit import Kit
from dvrt.streaming.link import Link
from dvrt.streaming.messages import (
    PROTOCOL_VERSION,
    Hello,
    Setup,
    ensure_agreement,
    ensure_incarnation,
)
from dvrt.transport import Channel

DEFAULT_WINDOW_BYTES = 64 << 20
DEFAULT_STALL_S = 30.0


async def open_link(
    channel: Channel,
    kit: Kit,
    setup: Setup,
    *,
    deadline_s: float | None,
    window_bytes: int = DEFAULT_WINDOW_BYTES,
    stall_s: float = DEFAULT_STALL_S,
    incarnation: int = 0,
) -> Link:
    """Compare set-ups with the peer, which must do the same, and take the channel over.

    The window is cut to what the kit's staging can promise. Raises ConfigError naming the field
    that differs (the peer raises it too), PeerLost, TransferTimeout, Corrupted; the channel is then
    aborted. ValueError for an incarnation that is not in 0 to 2**32 - 1: nothing was sent then.
    """
    ensure_incarnation(incarnation)
    mine = Hello(
        version=PROTOCOL_VERSION,
        setup=setup,
        incarnation=incarnation,
        window_bytes=kit.promise(window_bytes),
        is_verified=kit.is_verified,
    )
    try:
        theirs = await _greet(channel, mine, deadline_s=deadline_s)
    except BaseException:
        kit.take_back(mine.window_bytes)
        raise
    return Link(channel, kit, mine=mine, theirs=theirs, stall_s=stall_s)


async def _greet(channel: Channel, mine: Hello, *, deadline_s: float | None) -> Hello:
    """The peer's greeting, which agrees with ours."""
    try:
        async with deadline(deadline_s, "the handshake of a link"):
            await channel.send(pack(mine))
            theirs = unpack((await channel.receive()).header)
        if not isinstance(theirs, Hello):
            raise ProtocolError(f"expected a greeting, got a {type(theirs).__name__}")
        ensure_agreement(mine, theirs)
    except ConfigError:
        await channel.aclose()  # flushed, so that the peer learns our side of it, too
        raise
    except BaseException:
        channel.abort()
        raise
    return theirs
