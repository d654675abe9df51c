"""Bytes that are no requests, and clients that keep a connection waiting."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

from dvrt.serve.limits import HttpLimits
from tests.serve.client import ask, get, post, served, wire
from tests.serve.fake_engine import FakeEngine, expected_text

BODY = {"prompt": "a", "max_tokens": 4}


async def still_serves(server) -> None:
    status, _, body = await ask(server, post("/v1/completions", BODY))
    assert status == 200
    assert body["choices"][0]["text"] == expected_text("a", 4)


async def test_a_million_random_bytes(loop_kind):
    rubbish = random.Random(1).randbytes(1_000_000)
    limits = HttpLimits(header_limit_s=0.05)
    async with served(FakeEngine(), limits=limits) as (server, _):
        for start in range(0, len(rubbish), 50_000):
            async with wire(server) as connection:
                try:
                    await connection.send(rubbish[start : start + 50_000])
                except ConnectionError:
                    continue
                answer = await connection.end()
                assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        await still_serves(server)


async def test_rubbish_is_answered_in_openais_shape(loop_kind):
    async with served(FakeEngine()) as (server, _), wire(server) as connection:
        await connection.send(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
        status, headers, body = await connection.answer()
        assert await connection.end() == b""
    assert status == 400
    assert body["error"]["code"] == "invalid_http"
    assert headers["connection"] == "close"


@pytest.mark.parametrize("stream", [False, True])
async def test_pipelined_rubbish(loop_kind, stream):
    engine = FakeEngine(step_s=0.001)
    async with served(engine) as (server, _), wire(server) as connection:
        request = post("/v1/completions", {**BODY, "stream": stream})
        await connection.send(request + b"\x00\x01rubbish\r\n\r\n" + bytes(1000))
        raw = await connection.end()
        first, _, second = raw.partition(b"invalid_http")
        assert first.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 400 " in first
        assert second
        await still_serves(server)
    assert engine.ended == engine.began


async def test_pipelined_requests_are_answered_in_order(loop_kind):
    engine = FakeEngine()
    async with served(engine) as (server, _), wire(server) as connection:
        bodies = [{"prompt": f"p{i}", "max_tokens": 5} for i in range(20)]
        await connection.send(b"".join(post("/v1/completions", body) for body in bodies))
        for body in bodies:
            _, _, answer = await connection.answer()
            assert answer["choices"][0]["text"] == expected_text(body["prompt"], 5)


async def test_more_pipelined_bytes_than_are_kept():
    engine = FakeEngine()
    engine.go.clear()
    limits = HttpLimits(max_header_bytes=2000)
    async with served(engine, limits=limits) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", BODY))
        await engine.wait_open(1)
        extra = get("/health") * 2000
        await connection.send(extra)
        await asyncio.sleep(0.02)
        engine.go.set()
        assert (await connection.answer())[0] == 200
        for _ in range(2000):
            assert (await connection.answer())[0] == 200


async def test_rubbish_within_a_chunked_body(loop_kind):
    engine = FakeEngine()
    async with served(engine) as (server, _), wire(server) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await connection.send(head + b'5\r\n{"pro\r\nrubbish\r\n')
        status, _, body = await connection.answer()
        assert (status, body["error"]["code"]) == (400, "invalid_http")
        assert await connection.end() == b""
        await still_serves(server)


async def test_rubbish_after_a_refused_body_has_begun(loop_kind):
    limits = HttpLimits(max_body_bytes=100)
    async with served(FakeEngine(), limits=limits) as (server, _), wire(server) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await connection.send(head + b"1000\r\n" + b"x" * 0x1000 + b"\r\nrubbish\r\n")
        assert (await connection.end()).startswith(b"HTTP/1.1 4")
        await still_serves(server)


async def test_rubbish_after_an_answer_to_half_a_body(loop_kind):
    """The answer has been given; another one, about the rubbish, would be no HTTP."""
    async with served(FakeEngine()) as (server, _), wire(server) as connection:
        head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await connection.send(head + b"5\r\n12345\r\n")
        assert (await connection.answer())[0] == 404
        await connection.send(b"rubbish\r\n")
        assert await connection.end() == b""
        await still_serves(server)


async def test_body_in_single_bytes(loop_kind):
    async with served(FakeEngine()) as (server, _), wire(server) as connection:
        for byte in post("/v1/completions", BODY):
            await connection.send(bytes([byte]))
            await asyncio.sleep(0)
        status, _, answer = await connection.answer()
    assert status == 200
    assert answer["choices"][0]["text"] == expected_text("a", 4)


async def test_body_that_does_not_arrive(loop_kind):
    limits = HttpLimits(body_limit_s=0.1)
    engine = FakeEngine()
    async with served(engine, limits=limits) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", BODY)[:-1])
        status, headers, body = await connection.answer()
        assert await connection.end() == b""
    assert status == 408
    assert headers["connection"] == "close"
    assert "0.1 seconds" in body["error"]["message"]
    assert engine.began == []


@pytest.mark.parametrize("begin", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nx: y\r\n"])
async def test_head_that_does_not_arrive(loop_kind, begin):
    limits = HttpLimits(header_limit_s=0.1)
    async with served(FakeEngine(), limits=limits) as (server, _), wire(server) as connection:
        await connection.send(begin)
        for _ in range(20):
            await asyncio.sleep(0.02)
            if begin and not connection.reader.at_eof():
                connection.writer.write(b"z")
        assert await connection.end() == b""


async def test_second_head_that_does_not_arrive():
    limits = HttpLimits(header_limit_s=0.1)
    async with served(FakeEngine(), limits=limits) as (server, _), wire(server) as connection:
        await connection.send(get("/health"))
        assert (await connection.answer())[0] == 200
        await asyncio.sleep(0.15)
        await connection.send(get("/health") + b"GET /hea")
        assert (await connection.answer())[0] == 200
        assert await connection.end() == b""


async def test_head_too_large(loop_kind):
    async with served(FakeEngine()) as (server, _), wire(server) as connection:
        try:
            await connection.send(get("/health", headers=f"x: {'y' * 2_000_000}\r\n"))
            answer = await connection.end()
        except ConnectionError:
            answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        await still_serves(server)


async def test_client_that_does_not_read(loop_kind):
    """What cannot be written in time ends the connection and with it the request."""
    limits = HttpLimits(write_stall_s=0.2)
    engine = FakeEngine(max_context=1 << 18)
    async with served(engine, limits=limits) as (server, _):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((server.host, server.port))
            body = {"prompt": "a", "max_tokens": 1 << 17, "stream": True}
            deaf.sendall(post("/v1/completions", body))
            await engine.wait_open(1)
            await engine.wait_open(0)
        assert engine.cancelled == engine.began
        await still_serves(server)


async def test_too_many_connections(loop_kind):
    limits = HttpLimits(max_connections=2)
    async with served(FakeEngine(), limits=limits) as (server, _):
        async with wire(server) as first, wire(server) as second:
            for connection in (first, second):
                await connection.send(get("/health"))
                assert (await connection.answer())[0] == 200
            async with wire(server) as third:
                await third.send(get("/health"))
                status, headers, body = await third.answer()
                assert (status, headers["connection"]) == (503, "close")
                assert "too many connections" in body["error"]["message"]
                assert await third.end() == b""
            await first.send(get("/health"))
            assert (await first.answer())[0] == 200


async def test_expect_continue_and_old_http():
    async with served(FakeEngine()) as (server, _):
        async with wire(server) as connection:
            head, _, data = post(
                "/v1/completions", BODY, headers="expect: 100-continue\r\n"
            ).partition(b"\r\n\r\n")
            await connection.send(head + b"\r\n\r\n")
            assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
            await connection.send(data)
            assert (await connection.answer())[0] == 200
        async with wire(server) as connection:
            await connection.send(b"GET /health HTTP/1.0\r\n\r\n")
            assert (await connection.answer())[0] == 200
            assert await connection.end() == b""


async def test_websocket_upgrade_is_an_ordinary_request():
    upgrade = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: eA==\r\n"
    async with served(FakeEngine()) as (server, _):
        status, _, body = await ask(server, get("/v1/realtime", headers=upgrade))
    assert (status, body["error"]["code"]) == (404, "not_found")
