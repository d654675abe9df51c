"""What clients can get wrong, and the answer to each, in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
import math
import tracemalloc

import openai
import pytest

from dvrt.errors import StageFailed
from dvrt.serve.body import read_body
from dvrt.serve.limits import HttpLimits
from dvrt.serve.refusal import Refusal
from dvrt.serve.server import Server
from tests.serve.client import MODEL, ask, get, post, served, wire
from tests.serve.fake_engine import BrokenEngine, EngineFault, FakeEngine

CHAT = {"messages": [{"role": "user", "content": "x"}]}

COMPLETIONS = [
    ({}, "prompt", "prompt is missing"),
    ({"prompt": None}, "prompt", "prompt is NoneType"),
    ({"prompt": ""}, "prompt", "prompt is empty"),
    ({"prompt": []}, "prompt", "prompt is empty"),
    ({"prompt": [[]]}, "prompt", "prompt[0] is empty"),
    ({"prompt": {"a": 1}}, "prompt", "prompt is dict"),
    ({"prompt": [1, 2.5]}, "prompt", "prompt[1] is float"),
    ({"prompt": [True]}, "prompt", "prompt[0] is bool"),
    ({"prompt": ["a", 3]}, "prompt", "prompt[1] is int"),
    ({"prompt": [1, 260]}, "prompt", "token id 260 is outside the vocabulary of 260"),
    ({"prompt": [1, -1]}, "prompt", "token id -1 is outside"),
    ({"prompt": [10**30]}, "prompt", "outside the vocabulary"),
    ({"prompt": ["a"] * 129}, "prompt", "129 prompts"),
    ({"prompt": "a", "n": 129}, "n", "more than 128"),
    ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
    ({"prompt": "a", "n": 10**40}, "n", "n: "),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"prompt": "a", "max_tokens": "5"}, "max_tokens", "valid integer"),
    ({"prompt": "a", "max_tokens": 5.5}, "max_tokens", "valid integer"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens", "valid integer"),
    ({"prompt": "a", "max_tokens": 600}, "prompt", "600 new ones do not fit a context of 512"),
    ({"prompt": "a" * 600}, "prompt", "600 prompt tokens"),
    ({"prompt": "a", "temperature": -1}, "temperature", "temperature is -1"),
    ({"prompt": "a", "temperature": "hot"}, "temperature", "valid number"),
    ({"prompt": "a", "temperature": 1e999}, "body", "valid JSON"),
    ({"prompt": "a", "temperature": math.nan}, "body", "valid JSON"),
    ({"prompt": "a", "top_p": 0}, "top_p", "top_p is 0"),
    ({"prompt": "a", "top_p": 1.5}, "top_p", "top_p is 1.5"),
    ({"prompt": "a", "top_k": -1}, "top_k", "top_k: "),
    ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"prompt": "a", "seed": 1 << 64}, "seed", "less than"),
    ({"prompt": "a", "seed": 1.0}, "seed", "valid integer"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "less than or equal to 20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "valid integer"),
    ({"prompt": "a", "stop": 5}, "stop", "string or a list"),
    ({"prompt": "a", "stop": ["x"] * 5}, "stop", "at most 4"),
    ({"prompt": "a", "stop": ["x", ""]}, "stop", "empty string"),
    ({"prompt": "a", "stop_token_ids": [-1]}, "stop_token_ids.0", "greater than or equal to 0"),
    ({"prompt": "a", "stream": "yes"}, "stream", "valid boolean"),
    ({"prompt": "a", "stream_options": {}}, "stream_options", "needs stream"),
    (
        {"prompt": "a", "stream": True, "stream_options": {"x": 1}},
        "stream_options.x",
        "not a known",
    ),
    ({"prompt": "a", "best_of": 2}, "best_of", "best_of"),
    ({"prompt": "a", "suffix": "z"}, "suffix", "suffix is not supported"),
    ({"prompt": "a", "echo": True, "logprobs": 1}, "echo", "echo with logprobs"),
    ({"prompt": "a", "presence_penalty": 0.5}, "presence_penalty", "not supported"),
    ({"prompt": "a", "frequency_penalty": -1}, "frequency_penalty", "not supported"),
    ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    ({"prompt": "a", "temprature": 1}, "temprature", "is it temperature?"),
    ({"prompt": "a", "deadline_s": 0}, "deadline_s", "greater than 0"),
    ({"prompt": "a", "model": 5}, "model", "valid string"),
]

CHATS = [
    ({}, "messages", "messages is missing"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hi"}, "messages", "valid list"),
    ({"messages": ["hi"]}, "messages.0", "messages.0"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content",
        "part of type 'image_url'",
    ),
    ({**CHAT, "tools": [{"type": "function"}]}, "tools", "tools is not supported"),
    ({**CHAT, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({**CHAT, "reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({**CHAT, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({**CHAT, "logprobs": 3}, "logprobs", "valid boolean"),
    ({**CHAT, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
    ({**CHAT, "echo": True}, "echo", "not a known parameter"),
]


@pytest.mark.parametrize(
    ("path", "cases"), [("completions", COMPLETIONS), ("chat/completions", CHATS)]
)
async def test_refused_fields(path, cases):
    engine = FakeEngine()
    async with served(engine) as (server, _), wire(server) as connection:
        for body, param, text in cases:
            await connection.send(post(f"/v1/{path}", body))
            status, _, answer = await connection.answer()
            error = answer["error"]
            assert status == 400, body
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            assert text in error["message"], (body, error)
            assert error["param"] == (None if param == "body" else param), (body, error)
    assert engine.began == []
    assert engine.open == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        b"\xff\xfe\x00",
        b'{"prompt": "a", "max_tokens": Infinity}',
        b'{"prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": [' + b"1" * 5000 + b"]}",
        b"[1, 2]",
        b'"text"',
        b"null",
    ],
)
async def test_no_json_object(body):
    async with served(FakeEngine()) as (server, _):
        status, _, answer = await ask(server, post("/v1/completions", body))
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


async def test_body_too_large(loop_kind):
    limits = HttpLimits(max_body_bytes=1000)
    async with served(FakeEngine(), limits=limits) as (server, client):
        for size in (1001, 3999, 100_000):
            async with wire(server) as connection:
                await connection.send(post("/v1/completions", b" " * size))
                status, headers, answer = await connection.answer()
                assert status == 413
                assert answer["error"]["message"] == "the body is larger than 1000 bytes"
                assert headers["connection"] == "close"
                assert await connection.end() == b""
        with pytest.raises(openai.APIStatusError) as caught:
            await client.completions.create(model=MODEL, prompt="x" * 2000)
        assert caught.value.status_code == 413


async def test_a_body_too_large_is_not_kept():
    piece = bytes(10_000)
    limits = HttpLimits(max_body_bytes=100_000)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": piece, "more_body": True}

    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match="larger than 100000 bytes"):
            await read_body(receive, limits)
        assert tracemalloc.get_traced_memory()[1] < 250_000
    finally:
        tracemalloc.stop()


async def test_errors_are_those_of_the_official_client():
    engine = FakeEngine(rows=1, queue=0)
    async with served(engine) as (_, client):
        with pytest.raises(openai.BadRequestError, match="temperature is -1"):
            await client.completions.create(model=MODEL, prompt="a", temperature=-1)
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model="other", prompt="a")
        assert missing.value.code == "model_not_found"
        engine.go.clear()
        stream = client.completions.create(model=MODEL, prompt="a", stream=True)
        waiting = asyncio.create_task(stream)
        await engine.wait_open(1)
        with pytest.raises(openai.RateLimitError) as full:
            await client.completions.create(model=MODEL, prompt="b")
        assert full.value.response.headers["retry-after"] == "1"
        assert full.value.response.headers["retry-after-ms"] == "250"
        assert full.value.code == "queue_full"
        engine.go.set()
        await (await waiting).close()
        engine.draining = True
        with pytest.raises(openai.InternalServerError, match="draining") as away:
            await client.completions.create(model=MODEL, prompt="b", stream=True)
        assert away.value.status_code == 503


async def test_the_client_tries_again_when_the_queue_was_full():
    engine = FakeEngine(rows=1, queue=0)
    engine.go.clear()
    async with served(engine) as (_, client):
        first = asyncio.create_task(client.completions.create(model=MODEL, prompt="a"))
        await engine.wait_open(1)
        patient = client.with_options(max_retries=2)
        second = asyncio.create_task(patient.completions.create(model=MODEL, prompt="b"))
        await asyncio.sleep(0.05)
        engine.go.set()
        await asyncio.gather(first, second)
    assert len(engine.ended) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [StageFailed("w1", "killed"), EngineFault("lost its way")])
async def test_failure_before_the_first_token(stream, error):
    engine = FakeEngine()
    engine.failure = error
    async with served(engine) as (_, client):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(
                model=MODEL, prompt="a", stream=stream, extra_headers={"x-request-id": "mine-1"}
            )
    assert caught.value.status_code == 500
    assert str(error) in caught.value.message
    assert "mine-1" in caught.value.message


async def test_failure_within_a_stream(loop_kind):
    engine = FakeEngine()
    engine.failure, engine.fail_after = StageFailed("w1", "killed"), 5
    async with served(engine) as (server, client):
        stream = await client.completions.create(
            model=MODEL, prompt="a", max_tokens=50, stream=True
        )
        chunks = []
        with pytest.raises(openai.APIError, match="worker w1 failed: killed"):
            async for chunk in stream:
                chunks.append(chunk)
        assert chunks
        async with wire(server) as connection:
            request = post("/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 50})
            await connection.send(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            raw = await connection.end()
    *_, last = [line for line in raw.split(b"\n") if line.startswith(b"data: ")]
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["type"] == "server_error"
    assert error["code"] == "stage_failed"
    assert b"[DONE]" not in raw


async def test_a_bug_is_answered_without_its_details(caplog):
    async with served(BrokenEngine()) as (server, _):
        status, headers, body = await ask(server, post("/v1/completions", {"prompt": "a"}))
    assert status == 500
    assert headers["x-request-id"] in body["error"]["message"]
    assert "a bug" not in json.dumps(body)
    assert "a bug" in caplog.text


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (get("/nowhere"), 404, "not_found"),
        (get("/"), 404, "not_found"),
        (get("/v1/models/"), 404, "model_not_found"),
        (get("/v1/models/fake/other"), 404, "model_not_found"),
        (get("/v1/completions/"), 404, "not_found"),
        (get("/v1/completions"), 405, "method_not_allowed"),
        (post("/health", {}), 405, "method_not_allowed"),
        (post("/%F0%9F%99%82/..%2f", {}), 404, "not_found"),
    ],
)
async def test_wrong_paths_and_methods(request_bytes, status, code):
    async with served(FakeEngine()) as (server, _):
        found, headers, body = await ask(server, request_bytes)
    assert (found, body["error"]["code"]) == (status, code)
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize("api_key", ["s3cret", "schlüssel"])
async def test_api_key(api_key):
    async with Server(FakeEngine(), port=0, api_key=api_key) as server:
        raw = api_key.encode().decode("latin-1")
        for given, code in (
            ("", "missing_api_key"),
            ("authorization: Bearer wrong\r\n", "invalid_api_key"),
            ("authorization: Bearer \xff\r\n", "invalid_api_key"),
            (f"authorization: Basic {raw}\r\n", "invalid_api_key"),
            (f"authorization: Bearer {raw}x\r\n", "invalid_api_key"),
        ):
            for path in ("/v1/models", "/status", "/nowhere"):
                request = f"GET {path} HTTP/1.1\r\nhost: x\r\n{given}\r\n".encode("latin-1")
                status, headers, body = await ask(server, request)
                assert (status, body["error"]["code"]) == (401, code)
                assert headers["www-authenticate"] == "Bearer"
        right = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: bearer {raw}\r\n\r\n"
        assert (await ask(server, right.encode("latin-1")))[0] == 200
        assert (await ask(server, get("/health")))[0] == 200
        assert (await ask(server, get("/metrics")))[0] == 200
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="wrong", max_retries=0
        ) as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
