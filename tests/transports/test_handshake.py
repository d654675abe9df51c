"""Both sides prove themselves; a difference is named; a stranger costs little."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from dvrt.errors import ChannelClosed, ConfigError, ConnectFailed, Corrupted
from dvrt.transport import get_transport
from dvrt.transport.conformance import open_pair
from dvrt.transport.handshake import Accepted, Hello, Opening, greet, welcome
from dvrt.wire import decode, encode

SECRET = b"a secret of this cluster"
CLIENT = Hello(node="t1", incarnation="i7", role="worker", description={"dtype": "float32"})
SERVER = Hello(node="c0", incarnation="i1", role="controller", description={"dtype": "float32"})

tcp_pair = partial(open_pair, get_transport("tcp"), "tcp://127.0.0.1:0")
local_pair = partial(open_pair, get_transport("local"), "local://")


def changed(hello: Hello, **changes) -> Hello:
    fields = {name: getattr(hello, name) for name in Hello.__dataclass_fields__}
    return Hello(**(fields | changes))


async def shake(pair, *, client=CLIENT, server=SERVER, secret=SECRET, server_secret=SECRET, **more):
    """What both sides return or raise."""
    there, here = pair
    return await asyncio.gather(
        greet(there, hello=client, secret=secret, deadline_s=5),
        welcome(here, hello=server, secret=server_secret, deadline_s=5, **more),
        return_exceptions=True,
    )


@pytest.mark.parametrize("make_pair", [tcp_pair, local_pair])
async def test_each_learns_who_the_other_is(make_pair, loop_kind):
    async with make_pair() as pair:
        assert await shake(pair) == [SERVER, CLIENT]
        there, here = pair
        await there.send(b"h" * 100_000)
        assert (await here.receive(deadline_s=5)).header == b"h" * 100_000


@pytest.mark.parametrize("make_pair", [tcp_pair, local_pair])
async def test_another_secret_is_refused(make_pair):
    async with make_pair() as pair:
        client, server = await shake(pair, secret=b"another")
        assert isinstance(client, ConnectFailed)
        assert "does not know this cluster's secret" in str(client)
        assert isinstance(server, ConnectFailed)
        with pytest.raises(ChannelClosed):
            await pair[1].receive()


async def test_a_client_that_skips_its_check_is_refused_too():
    async with tcp_pair() as (there, here):
        serving = asyncio.create_task(welcome(here, hello=SERVER, secret=SECRET, deadline_s=5))
        await there.send(encode(Opening(protocol_version=1, nonce=b"n" * 32)))
        challenge = decode((await there.receive(deadline_s=5)).header)
        from dvrt.transport.handshake import Identity

        await there.send(encode(Identity(hello=CLIENT, proof=challenge.proof)))
        with pytest.raises(ConnectFailed, match="does not know this cluster's secret"):
            await serving


@pytest.mark.parametrize(
    ("client", "field"),
    [
        (changed(CLIENT, description={"dtype": "bfloat16"}), "description 'dtype'"),
        (changed(CLIENT, protocol_version=7), "protocol version"),
    ],
)
async def test_the_differing_field_is_named_on_both_sides(client, field, loop_kind):
    async with tcp_pair() as pair:
        errors = await shake(pair, client=client)
        for error in errors:
            assert isinstance(error, Corrupted)
            assert field in str(error)
        assert "refused this side" in str(errors[0])


async def test_a_check_of_ones_own_replaces_the_comparison():
    def check(hello: Hello) -> None:
        if hello.role != "worker":
            raise Corrupted("role", expected="worker", got=hello.role)

    differing = changed(CLIENT, description={"dtype": "int4"})
    async with tcp_pair() as pair:
        assert await shake(pair, client=differing, check=check) == [SERVER, differing]
    async with tcp_pair() as pair:
        errors = await shake(pair, client=changed(CLIENT, role="spy"), check=check)
        assert [type(error) for error in errors] == [Corrupted, Corrupted]
        assert "role: expected 'worker', got 'spy'" in str(errors[0])


@pytest.mark.parametrize(
    ("header", "regions", "what"),
    [
        (b"x" * (64 << 10) + b"x", [], "oversized frame, header bytes"),
        (b"", [b"region"], "oversized frame, regions"),
        (b"\xc1 rubbish", [], "handshake: expected 'Opening', got 'not msgpack"),
        (encode(Accepted(hello=CLIENT, proof=b"")), [], "expected 'Opening', got 'Accepted'"),
    ],
)
async def test_rubbish_is_named(header, regions, what):
    from dvrt.buffers import Region

    async with tcp_pair() as (there, here):
        await there.send(header, *[Region.of(region) for region in regions], deadline_s=5)
        with pytest.raises(Corrupted, match=what):
            await welcome(here, hello=SERVER, secret=SECRET, deadline_s=5)


async def test_silence_ends_at_the_deadline(loop_kind):
    for side in (greet, welcome):
        async with tcp_pair() as (there, _here):
            with pytest.raises(ConnectFailed, match=r"not over within 0\.05 s"):
                await side(there, hello=CLIENT, secret=SECRET, deadline_s=0.05)
            with pytest.raises(ChannelClosed):
                await there.send(b"")


async def test_a_peer_that_leaves_is_a_failed_connect():
    async with tcp_pair() as (there, here):
        there.abort()
        with pytest.raises(ConnectFailed, match="ended the handshake"):
            await welcome(here, hello=SERVER, secret=SECRET, deadline_s=5)


async def test_cancelling_aborts():
    async with tcp_pair() as (_there, here):
        serving = asyncio.create_task(welcome(here, hello=SERVER, secret=SECRET, deadline_s=5))
        await asyncio.sleep(0.01)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with pytest.raises(ChannelClosed):
            await here.receive()


async def test_an_empty_secret_is_refused():
    async with local_pair() as (there, _here):
        with pytest.raises(ConfigError, match="empty secret"):
            await greet(there, hello=CLIENT, secret=b"", deadline_s=1)
