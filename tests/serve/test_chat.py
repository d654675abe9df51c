"""/v1/chat/completions as the official client uses it."""

from __future__ import annotations

import pytest

from tests.serve.client import MODEL, served
from tests.serve.fake_engine import ByteCodec, FakeEngine, expected_text

USER = [{"role": "user", "content": "Hello"}]
TEMPLATED = "<user>Hello<assistant>"


async def test_message(loop_kind):
    async with served(FakeEngine()) as (_, client):
        done = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=30)
    assert done.object == "chat.completion"
    assert done.id.startswith("chatcmpl-")
    message = done.choices[0].message
    assert (message.role, message.content) == ("assistant", expected_text(TEMPLATED, 30))
    assert done.usage.prompt_tokens == len(TEMPLATED)


async def test_stream(loop_kind):
    async with served(FakeEngine()) as (_, client):
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=USER,
            max_completion_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    first, *spoken, last = chunks
    assert first.object == "chat.completion.chunk"
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in spoken)
    assert text == expected_text(TEMPLATED, 30)
    assert spoken[-1].choices[0].finish_reason == "length"
    assert last.usage.completion_tokens == 30


async def test_samples_are_not_mixed_up():
    async with served(FakeEngine()) as (_, client):
        stream = await client.chat.completions.create(
            model=MODEL, messages=USER, max_tokens=20, n=3, stream=True
        )
        texts, roles = [""] * 3, [0] * 3
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                roles[choice.index] += choice.delta.role is not None
    assert texts == [expected_text(TEMPLATED, 20, sample=i) for i in range(3)]
    assert roles == [1, 1, 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(stream):
    async with served(FakeEngine()) as (_, client):
        done = await client.chat.completions.create(
            model=MODEL,
            messages=USER,
            max_tokens=20,
            logprobs=True,
            top_logprobs=2,
            stream=stream,
        )
        chunks = [chunk async for chunk in done] if stream else [done]
    content = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert len(content) == 20
    for entry in content:
        assert entry.logprob == -0.5
        assert [(one.token, one.logprob) for one in entry.top_logprobs] == [("A", -1), ("B", -2)]
        (byte,) = entry.bytes
        assert entry.token == (chr(byte) if byte < 128 else f"bytes:\\x{byte:02x}")
    assert bytes(entry.bytes[0] for entry in content).decode() == expected_text(TEMPLATED, 20)


async def test_logprobs_without_alternatives():
    engine = FakeEngine()
    async with served(engine) as (_, client):
        done = await client.chat.completions.create(
            model=MODEL, messages=USER, max_tokens=2, logprobs=True
        )
    assert [entry.top_logprobs for entry in done.choices[0].logprobs.content] == [[], []]
    assert [options["logprobs"] for options in engine.options.values()] == [0]


async def test_roles_and_parts():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": None, "refusal": None},
        {"role": "user", "content": "d", "name": "Ann"},
    ]
    async with served(FakeEngine()) as (_, client):
        done = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=5)
    prompt = "<system>Be brief.<user>ab<assistant>c<user>d<assistant>"
    assert done.choices[0].message.content == expected_text(prompt, 5)


async def test_an_answer_can_be_sent_back():
    async with served(FakeEngine()) as (_, client):
        done = await client.chat.completions.create(model=MODEL, messages=USER, max_tokens=5)
        again = await client.chat.completions.create(
            model=MODEL, messages=[*USER, done.choices[0].message, *USER], max_tokens=5
        )
    prompt = f"<user>Hello<assistant>{expected_text(TEMPLATED, 5)}<user>Hello<assistant>"
    assert again.choices[0].message.content == expected_text(prompt, 5)


async def test_length_is_the_engines_choice():
    engine = FakeEngine()
    async with served(engine) as (_, client):
        done = await client.chat.completions.create(model=MODEL, messages=USER)
    assert [options["max_tokens"] for options in engine.options.values()] == [None]
    assert done.usage.completion_tokens == 256


async def test_neutral_values_are_accepted():
    async with served(FakeEngine()) as (_, client):
        done = await client.chat.completions.create(
            model=MODEL,
            messages=USER,
            max_tokens=3,
            presence_penalty=0,
            frequency_penalty=0.0,
            logit_bias={},
            tools=[],
            tool_choice="none",
            response_format={"type": "text"},
            metadata={"a": "b"},
            store=False,
            service_tier="auto",
            parallel_tool_calls=True,
        )
    assert done.choices[0].message.content == ByteCodec().decode(
        expected_text(TEMPLATED, 3).encode()
    )
