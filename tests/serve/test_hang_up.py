"""A client that leaves ends its request, wherever that request is."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from dvrt.results import Token
from dvrt.serve.tokens import merged
from tests.serve.client import MODEL, post, served, wire
from tests.serve.fake_engine import FakeEngine, expected_text

BODY = {"prompt": "a", "max_tokens": 400}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("way", ["reset", "close", "half-close"])
async def test_before_the_first_token(loop_kind, stream, way):
    engine = FakeEngine()
    engine.go.clear()
    async with served(engine) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", {**BODY, "stream": stream}))
        await engine.wait_open(1)
        if way == "reset":
            connection.hang_up()
        elif way == "close":
            connection.writer.close()
        else:
            connection.writer.write_eof()
        await engine.wait_open(0)
    assert engine.cancelled == engine.began
    assert engine.metrics.value("dvrt_http_hang_ups_total") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_while_queued(loop_kind, stream):
    engine = FakeEngine(rows=1)
    engine.go.clear()
    async with served(engine) as (server, _), wire(server) as first, wire(server) as second:
        await first.send(post("/v1/completions", BODY))
        await engine.wait_open(1)
        await second.send(post("/v1/completions", {**BODY, "stream": stream}))
        await engine.wait_open(2)
        second.hang_up()
        await engine.wait_open(1)
        assert engine.cancelled == engine.began[1:]
        engine.go.set()
        status, _, _ = await first.answer()
    assert status == 200
    assert engine.ended == engine.began[:1]


@pytest.mark.parametrize("stream", [False, True])
async def test_while_tokens_come(loop_kind, stream):
    engine = FakeEngine(step_s=0.005)
    async with served(engine) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", {**BODY, "stream": stream}))
        await engine.wait_open(1)
        if stream:
            await connection.reader.readuntil(b"data: ")
        await asyncio.sleep(0.02)
        connection.hang_up()
        await engine.wait_open(0)
    assert engine.cancelled == engine.began


async def test_all_of_a_calls_requests_end():
    engine = FakeEngine(rows=2)
    engine.go.clear()
    async with served(engine) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", {**BODY, "prompt": ["a", "b", "c", "d"]}))
        await engine.wait_open(4)
        connection.hang_up()
        await engine.wait_open(0)
    assert sorted(engine.cancelled) == sorted(engine.began)


async def test_one_failing_prompt_ends_the_others():
    engine = FakeEngine(max_context=20)
    engine.go.clear()
    async with served(engine) as (server, _), wire(server) as connection:
        body = {"prompt": ["a", "b" * 30, "c"], "max_tokens": 5}
        await connection.send(post("/v1/completions", body))
        status, _, answer = await connection.answer()
        await engine.wait_open(0)
    assert status == 400
    assert "30 prompt tokens" in answer["error"]["message"]
    assert sorted(engine.cancelled) == sorted(engine.began)


async def test_with_the_next_request_sent_early():
    """uvicorn stops reading a connection whose next request came early; leaving must still show."""
    engine = FakeEngine()
    engine.go.clear()
    async with served(engine) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", BODY) + post("/v1/completions", BODY))
        await engine.wait_open(1)
        await connection.send(b"GET / HTTP/1.1\r\n")
        connection.hang_up()
        await engine.wait_open(0)
    assert len(engine.began) == len(engine.cancelled) == 1


async def test_within_the_body():
    engine = FakeEngine()
    async with served(engine) as (server, _), wire(server) as connection:
        await connection.send(post("/v1/completions", BODY)[:-10])
        await asyncio.sleep(0.02)
        connection.hang_up()
        async with asyncio.timeout(5):
            while not engine.metrics.value("dvrt_http_hang_ups_total"):
                await asyncio.sleep(0.002)
    assert engine.began == []


async def test_a_timeout_of_the_official_client():
    engine = FakeEngine()
    engine.go.clear()
    async with served(engine) as (_, client):
        call = client.completions.create(model=MODEL, prompt="a")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call, 0.05)
        await engine.wait_open(0)
    assert engine.cancelled == engine.began


async def test_a_stream_that_is_closed_early():
    engine = FakeEngine(step_s=0.002)
    async with served(engine) as (_, client):
        stream = await client.completions.create(
            model=MODEL, prompt="a", max_tokens=400, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        await engine.wait_open(0)
    assert engine.cancelled == engine.began


async def test_two_hundred_streams_a_third_leaving(loop_kind):
    """Whoever stays gets all of its own text, whoever leaves is cancelled; all rows are freed."""
    engine = FakeEngine(rows=50, step_s=0.001)
    choice = random.Random(5)
    leavers = set(choice.sample(range(200), 66))

    async def one(number: int) -> None:
        prompt, n_tokens = f"client {number}", choice.randrange(30, 50)
        await asyncio.sleep(choice.random() * 0.2)
        stream = await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=n_tokens, stream=True
        )
        texts = []
        async for chunk in stream:
            texts.append(chunk.choices[0].text)
            if number in leavers and len(texts) > choice.randrange(20):
                await stream.close()
                break
        whole = expected_text(prompt, n_tokens)
        text = "".join(texts)
        assert whole.startswith(text) if number in leavers else text == whole

    async with served(engine) as (_, client):
        async with asyncio.timeout(20):
            await asyncio.gather(*(one(number) for number in range(200)))
        await engine.wait_open(0)
    assert len(engine.began) == 200
    assert len(engine.ended) == 134
    assert len(engine.cancelled) == 66
    assert sorted(engine.ended + engine.cancelled) == sorted(engine.began)


class Source:
    """A stream of tokens that remembers whether it was closed."""

    def __init__(self, *, n: int, error: Exception | None = None) -> None:
        self.n, self.error, self.is_closed = n, error, False

    async def tokens(self):
        try:
            for index in range(self.n):
                yield Token(id=index, text="", index=index)
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


@pytest.mark.parametrize("n_sources", [1, 3])
async def test_merged(n_sources):
    sources = [Source(n=4) for _ in range(n_sources)]
    seen = [item async for item in merged([one.tokens() for one in sources])]
    for number in range(n_sources):
        assert [token.id for i, token in seen if i == number] == [0, 1, 2, 3]
    assert all(one.is_closed for one in sources)


@pytest.mark.parametrize("n_sources", [1, 3])
async def test_merged_closed_early(n_sources):
    sources = [Source(n=1000) for _ in range(n_sources)]
    stream = merged([one.tokens() for one in sources])
    await anext(stream)
    await stream.aclose()
    assert all(one.is_closed for one in sources)


@pytest.mark.parametrize("n_sources", [1, 3])
async def test_merged_error(n_sources):
    sources = [Source(n=1000) for _ in range(n_sources - 1)] + [Source(n=2, error=OSError("x"))]
    with pytest.raises(OSError, match="x"):
        async for _ in merged([one.tokens() for one in sources]):
            pass
    assert all(one.is_closed for one in sources)
