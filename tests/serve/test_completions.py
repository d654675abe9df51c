"""/v1/completions as the official client uses it."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.serve.client import MODEL, ask, post, served
from tests.serve.fake_engine import FakeEngine, expected_ids, expected_text


async def test_text(loop_kind):
    engine = FakeEngine()
    async with served(engine) as (_, client):
        done = await client.completions.create(model=MODEL, prompt="Once", max_tokens=40)
    assert done.object == "text_completion"
    assert done.id.startswith("cmpl-")
    assert done.model == MODEL
    assert [choice.text for choice in done.choices] == [expected_text("Once", 40)]
    assert done.choices[0].finish_reason == "length"
    assert done.choices[0].logprobs is None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (4, 40)
    assert done.usage.total_tokens == 44


async def test_stream(loop_kind):
    async with served(FakeEngine()) as (_, client):
        stream = await client.completions.create(
            model=MODEL,
            prompt="Once",
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    *spoken, last = chunks
    assert "".join(chunk.choices[0].text for chunk in spoken) == expected_text("Once", 40)
    reasons = [chunk.choices[0].finish_reason for chunk in spoken]
    assert reasons == [None] * (len(spoken) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in spoken)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 40)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_stream_without_usage():
    async with served(FakeEngine()) as (_, client):
        stream = await client.completions.create(
            model=MODEL, prompt="Once", max_tokens=3, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert all(chunk.choices for chunk in chunks)


def test_synchronous_client():
    async def run() -> openai.types.Completion:
        async with served(FakeEngine()) as (server, _):
            return await asyncio.to_thread(_complete, server.url)

    assert asyncio.run(run()).choices[0].text == expected_text("Sync", 12)


def _complete(url: str) -> openai.types.Completion:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        return client.completions.create(model=MODEL, prompt="Sync", max_tokens=12)


@pytest.mark.parametrize(
    ("prompt", "each"),
    [
        ("abc", [b"abc"]),
        ([97, 98, 99], [b"abc"]),
        (["abc", "de"], [b"abc", b"de"]),
        ([[97, 98, 99], [100, 101]], [b"abc", b"de"]),
        (["abc", [100, 101]], [b"abc", b"de"]),
    ],
)
async def test_prompts(prompt, each):
    async with served(FakeEngine()) as (_, client):
        done = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=8)
    assert [choice.index for choice in done.choices] == list(range(len(each)))
    texts = [expected_text(list(one), 8) for one in each]
    assert [choice.text for choice in done.choices] == texts
    assert done.usage.prompt_tokens == sum(len(one) for one in each)
    assert done.usage.completion_tokens == 8 * len(each)


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_and_samples(stream):
    async with served(FakeEngine()) as (_, client):
        done = await client.completions.create(
            model=MODEL, prompt=["ab", "cd"], n=2, max_tokens=9, stream=stream
        )
        texts = ["", "", "", ""]
        for chunk in [chunk async for chunk in done] if stream else [done]:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == [expected_text(p, 9, sample=s) for p in ("ab", "cd") for s in (0, 1)]


async def test_default_length_is_openais():
    async with served(FakeEngine(max_context=20)) as (_, client):
        done = await client.completions.create(model=MODEL, prompt="a")
        short = await client.completions.create(model=MODEL, prompt="a" * 15)
    assert done.usage.completion_tokens == 16
    assert short.usage.completion_tokens == 5


async def test_options_reach_the_engine():
    engine = FakeEngine()
    async with served(engine) as (_, client):
        await client.completions.create(
            model=MODEL,
            prompt="a",
            max_tokens=2,
            n=2,
            stop=["x", "y"],
            seed=7,
            temperature=0.5,
            top_p=0.9,
            user="somebody",
            extra_body={
                "top_k": 5,
                "repetition_penalty": 1.5,
                "stop_token_ids": [3],
                "ignore_eos": True,
                "deadline_s": 60,
            },
        )
        await client.completions.create(model=MODEL, prompt="a", max_tokens=2, seed=-1)
    first, second = engine.options.values()
    assert first.pop("request_id") != second.pop("request_id")
    assert first == {
        "max_tokens": 2,
        "n": 2,
        "stop": ("x", "y"),
        "seed": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "repetition_penalty": 1.5,
        "stop_ids": (3,),
        "ignore_eos": True,
        "deadline_s": 60,
        "logprobs": None,
    }
    assert second["seed"] == 2**64 - 1
    assert second["temperature"] is None


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string(stream):
    whole = expected_text("story", 200)
    stop = whole[20:23]
    async with served(FakeEngine()) as (_, client):
        done = await client.completions.create(
            model=MODEL, prompt="story", max_tokens=200, stop=stop, stream=stream
        )
        chunks = [chunk async for chunk in done] if stream else [done]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == whole[: whole.find(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_eos_and_ignore_eos():
    engine = FakeEngine()
    engine.eos_after = 5
    async with served(engine) as (_, client):
        ended = await client.completions.create(model=MODEL, prompt="a", max_tokens=10)
        whole = await client.completions.create(
            model=MODEL, prompt="a", max_tokens=10, extra_body={"ignore_eos": True}
        )
    assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].text == expected_text("a", 5)
    assert ended.usage.completion_tokens == 6
    assert whole.usage.completion_tokens == 10


async def test_logprobs():
    async with served(FakeEngine()) as (_, client):
        done = await client.completions.create(model=MODEL, prompt="abc", max_tokens=12, logprobs=2)
        stream = await client.completions.create(
            model=MODEL, prompt="abc", max_tokens=12, logprobs=2, stream=True
        )
        chunks = [chunk async for chunk in stream]
    whole = done.choices[0].logprobs
    ids = expected_ids(b"abc", 12)
    assert whole.tokens == [chr(one) if one < 128 else f"bytes:\\x{one:02x}" for one in ids]
    assert whole.token_logprobs == [-0.5] * 12
    for name, top in zip(whole.tokens, whole.top_logprobs, strict=True):
        assert top == {"A": -1.0, "B": -2.0, name: top[name]}
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    assert [name for part in parts for name in part.tokens] == whole.tokens
    assert [at for part in parts for at in part.text_offset] == whole.text_offset
    text = done.choices[0].text
    ascii_ids = [i for i, one in enumerate(ids) if one < 128]
    assert ascii_ids
    for i in ascii_ids:
        assert text[whole.text_offset[i]] == chr(ids[i])


@pytest.mark.parametrize("stream", [False, True])
async def test_echo(stream):
    async with served(FakeEngine()) as (_, client):
        done = await client.completions.create(
            model=MODEL, prompt=["ab", [99]], echo=True, max_tokens=4, stream=stream
        )
        texts = ["", ""]
        for chunk in [chunk async for chunk in done] if stream else [done]:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == ["ab" + expected_text("ab", 4), "c" + expected_text("c", 4)]


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_on_request(stream):
    async with served(FakeEngine()) as (_, client):
        done = await client.completions.create(
            model=MODEL,
            prompt="ab",
            max_tokens=6,
            stream=stream,
            extra_body={"return_token_ids": True},
        )
        chunks = [chunk async for chunk in done] if stream else [done]
    ids = [one for chunk in chunks for one in chunk.choices[0].model_extra["token_ids"]]
    assert ids == expected_ids(b"ab", 6)


@pytest.mark.parametrize("stream", [False, True])
async def test_without_tokenizer(stream):
    async with served(FakeEngine(has_tokenizer=False)) as (server, client):
        done = await client.completions.create(
            model=MODEL, prompt=[5, 6], max_tokens=6, logprobs=1, stream=stream
        )
        chunks = [chunk async for chunk in done] if stream else [done]
        refused = await ask(server, post("/v1/completions", {"prompt": "text"}))
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        refused_chat = await ask(server, post("/v1/chat/completions", chat))
    ids = [one for chunk in chunks for one in chunk.choices[0].model_extra["token_ids"]]
    assert ids == expected_ids([5, 6], 6)
    assert all(chunk.choices[0].text == "" for chunk in chunks)
    assert chunks[0].choices[0].logprobs.tokens[0] == f"token_id:{ids[0]}"
    for status, _, body in (refused, refused_chat):
        assert status == 400
        assert "no tokenizer" in body["error"]["message"]


async def test_long_text_is_encoded_beside_the_loop():
    prompt = "word " * 6000
    async with served(FakeEngine(max_context=1 << 16)) as (_, client):
        done = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=4)
    assert done.choices[0].text == expected_text(prompt, 4)
