"""The server's life: start, stop, drain, close."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import openai
import pytest

from dvrt.errors import ConfigError
from dvrt.serve.limits import HttpLimits
from dvrt.serve.server import Server, serve
from tests.serve.client import MODEL, ask, get, post, served, wire
from tests.serve.fake_engine import FakeEngine, expected_text

BODY = {"prompt": "a", "max_tokens": 4}


async def test_port_in_use(loop_kind):
    async with Server(FakeEngine(), port=0) as server:
        other = Server(FakeEngine(), port=server.port)
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{server.port} is in use"):
            await other.start()
        await other.aclose()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host": "192.0.2.1", "port": 8000}, r"cannot listen on 192\.0\.2\.1:8000"),
        ({"port": 65536}, "port is 65536"),
        ({"port": -1}, "port is -1"),
        ({"api_key": " "}, "api_key is empty"),
    ],
)
async def test_settings_that_cannot_work(loop_kind, options, text):
    with pytest.raises(ConfigError, match=text):
        await Server(FakeEngine(), **options).start()


async def test_names_and_ipv6():
    async with Server(FakeEngine(), host="localhost", port=0) as server:
        assert (await ask(server, get("/health")))[0] == 200
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with Server(FakeEngine(), host="::1", port=0) as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert (await ask(server, get("/health")))[0] == 200


async def test_the_port_is_free_again_at_once(loop_kind):
    async with Server(FakeEngine(), port=0) as server, wire(server) as idle:
        await idle.send(get("/health"))
        await idle.answer()
        port = server.port
        await server.aclose()
        assert await idle.end() == b""
        async with Server(FakeEngine(), port=port) as again:
            assert (await ask(again, get("/health")))[0] == 200


async def test_repr():
    server = Server(FakeEngine(), port=0)
    assert "closed" in repr(server)
    async with server:
        assert repr(server) == f"<Server {server.url} listening, 0 connections, 0 calls>"


async def test_drain_lets_running_calls_end(loop_kind):
    engine = FakeEngine(step_s=0.002)
    async with served(engine) as (server, client):
        stream = await client.completions.create(
            model=MODEL, prompt="a", max_tokens=50, stream=True
        )
        draining = asyncio.create_task(server.drain(10))
        await asyncio.sleep(0.01)
        with pytest.raises(openai.InternalServerError, match="draining"):
            await client.completions.create(model=MODEL, prompt="b")
        text = "".join([chunk.choices[0].text async for chunk in stream])
        await draining
    assert text == expected_text("a", 50)


async def test_drain_waits_for_the_last_byte(loop_kind):
    """The engine is done with a request before its client has all of it."""
    engine = FakeEngine(max_context=1 << 21)
    engine.go.clear()
    prompt = "a" * 500_000
    body = {"prompt": prompt, "echo": True, "n": 16, "max_tokens": 2}
    loop = asyncio.get_running_loop()
    async with served(engine) as (server, _):
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect((server.host, server.port))
            slow.setblocking(False)
            closing = "connection: close\r\n"
            await loop.sock_sendall(slow, post("/v1/completions", body, headers=closing))
            await engine.wait_open(1)
            draining = asyncio.create_task(server.drain(30))
            engine.go.set()
            await engine.wait_open(0)
            await asyncio.sleep(0.2)
            was_draining = not draining.done()
            raw = b"".join([piece async for piece in _received(slow)])
            await draining
    answer = json.loads(raw.partition(b"\r\n\r\n")[2])
    assert was_draining
    assert answer["choices"][15]["text"] == prompt + expected_text(prompt, 2, sample=15)


async def _received(connection: socket.socket) -> AsyncIterator[bytes]:
    while piece := await asyncio.get_running_loop().sock_recv(connection, 1 << 16):
        yield piece


async def test_drain_has_a_limit(loop_kind):
    engine = FakeEngine()
    engine.go.clear()
    async with served(engine) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", BODY))
        await engine.wait_open(1)
        begin = asyncio.get_running_loop().time()
        await server.drain(0.1)
        assert 0.09 < asyncio.get_running_loop().time() - begin < 5
        await server.aclose()
        status, _, body = await connection.answer()
    assert (status, body["error"]["message"]) == (503, "the server is shutting down")


@pytest.mark.parametrize("stream", [False, True])
async def test_closing_tells_every_client(loop_kind, stream):
    engine = FakeEngine(rows=2)
    async with served(engine) as (server, client):
        spoken = None
        if stream:
            spoken = await client.completions.create(
                model=MODEL, prompt="a", max_tokens=400, stream=True
            )
            await anext(aiter(spoken))
        engine.go.clear()
        waiting = [
            asyncio.create_task(client.completions.create(model=MODEL, prompt="a"))
            for _ in range(5)
        ]
        await engine.wait_open(5 + stream)
        await server.aclose()
        for one in waiting:
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                await one
        if spoken is not None:
            with pytest.raises(openai.APIError, match="shutting down"):
                async for _ in spoken:
                    pass
    assert engine.open == 0


async def test_closing_does_not_wait_for_the_deaf(loop_kind):
    limits = HttpLimits(close_grace_s=0.1)
    engine = FakeEngine(max_context=1 << 18)
    async with served(engine, limits=limits) as (server, _):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((server.host, server.port))
            body = {"prompt": "a", "max_tokens": 1 << 17, "stream": True}
            deaf.sendall(post("/v1/completions", body))
            await engine.wait_open(1)
            await asyncio.sleep(0.1)
            async with asyncio.timeout(2):
                await server.aclose()
    assert engine.open == 0


async def test_closing_within_a_body_and_a_head():
    limits = HttpLimits(close_grace_s=0.1)
    async with served(FakeEngine(), limits=limits) as (server, _):
        async with wire(server) as one, wire(server) as two:
            await one.send(post("/v1/completions", BODY)[:-5])
            await two.send(b"GET /hea")
            await asyncio.sleep(0.02)
            await server.aclose()
            assert await one.end() == b""
            assert await two.end() == b""


async def serving(engine: FakeEngine) -> tuple[asyncio.Task[None], Server]:
    ready: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(engine, port=0, drain_limit_s=10, ready=ready.set_result))
    return task, await ready


async def test_serve_until_stopped(loop_kind):
    engine = FakeEngine(step_s=0.001)
    task, server = await serving(engine)
    asking = asyncio.create_task(ask(server, post("/v1/completions", {**BODY, "max_tokens": 60})))
    await engine.wait_open(1)
    server.stop()
    await task
    status, _, body = await asking
    assert status == 200
    assert body["choices"][0]["text"] == expected_text("a", 60)


async def test_stopped_twice_it_does_not_wait(loop_kind):
    engine = FakeEngine()
    engine.go.clear()
    task, server = await serving(engine)
    asking = asyncio.create_task(ask(server, post("/v1/completions", BODY)))
    await engine.wait_open(1)
    server.stop()
    await asyncio.sleep(0.05)
    assert not task.done()
    server.stop()
    async with asyncio.timeout(2):
        await task
    assert (await asking)[0] == 503


async def test_cancelled_it_closes(loop_kind):
    engine = FakeEngine()
    engine.go.clear()
    task, server = await serving(engine)
    asking = asyncio.create_task(ask(server, post("/v1/completions", BODY)))
    await engine.wait_open(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await asking)[0] == 503
    with pytest.raises(OSError):
        await ask(server, get("/health"))
