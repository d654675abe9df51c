"""The OpenAI API over the engine itself: a model with a tokenizer on two stages in this process.

One launch for all of it, so that it is one test: each function below is a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

import dvrt
import dvrt.cluster.launch  # imported outside any event loop
from tests.serve.client import ask, get, served

MODEL = "storyteller"
STORYTELLER = Path(__file__).parents[2] / "examples" / MODEL
KEY = "sesame"
CONTEXT, ROWS, MAX_QUEUE = 512, 4, 2
PROMPT = "Once upon a time there was a hedgehog"
DRAWN = {"max_tokens": 24, "seed": 7, "temperature": 1.0}
LONG = {"max_tokens": 450, "extra_body": {"ignore_eos": True}}

Client = openai.AsyncOpenAI


def complete(client: Client, prompt: Any = PROMPT, **options: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **options)


def chat(client: Client, messages: list[dict[str, str]], **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **options)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_api_over_the_engine() -> None:
    shape = {"stages": 2, "microbatches": 2, "batch_size": ROWS // 2, "max_queue": MAX_QUEUE}
    async with dvrt.launch(STORYTELLER, in_process=True, max_context=CONTEXT, **shape) as engine:
        async with served(engine, api_key=KEY) as (server, stranger):
            client = stranger.with_options(api_key=KEY)
            await a_stranger_is_refused(stranger)
            await the_model_is_listed(client)
            await a_completion_is_the_engines_own(engine, client)
            await log_probabilities_are_the_engines_own(engine, client)
            await a_seed_gives_the_same_samples_again(engine, client)
            await a_stop_string_is_cut_off(client)
            await a_chat_goes_through_the_models_template(engine, client)
            await what_does_not_fit_is_refused(engine, client)
            await who_hangs_up_frees_rows(engine, client)
            await a_full_queue_says_when_to_come_again(engine, client)
            await all_of_it_was_counted(engine, server)


async def a_stranger_is_refused(stranger: Client) -> None:
    with pytest.raises(openai.AuthenticationError) as refusal:
        await complete(stranger)
    assert refusal.value.status_code == 401


async def the_model_is_listed(client: Client) -> None:
    (model,) = [each async for each in client.models.list()]
    assert (model.id, model.model_extra) == (MODEL, {"max_model_len": CONTEXT})


async def a_completion_is_the_engines_own(engine: dvrt.Engine, client: Client) -> None:
    own = await engine.complete(PROMPT, **DRAWN)
    whole = await complete(client, **DRAWN)
    assert whole.choices[0].text == own.text != ""
    assert whole.choices[0].finish_reason == "length"
    n_prompt = len(engine.text.encode(PROMPT))
    counts = (n_prompt, DRAWN["max_tokens"])
    assert (own.n_prompt_tokens, len(own.token_ids)) == counts
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == counts
    by_ids = await complete(client, engine.text.encode(PROMPT), **DRAWN)
    assert by_ids.choices[0].text == own.text
    stream = await complete(client, stream=True, stream_options={"include_usage": True}, **DRAWN)
    *chunks, last = [chunk async for chunk in stream]
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].text for chunk in chunks) == own.text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == counts


async def log_probabilities_are_the_engines_own(engine: dvrt.Engine, client: Client) -> None:
    own = (await engine.complete(PROMPT, logprobs=2, **DRAWN)).samples[0].tokens
    (choice,) = (await complete(client, logprobs=2, **DRAWN)).choices
    assert choice.logprobs.tokens == [engine.text.token_bytes(one.id).decode() for one in own]
    assert choice.logprobs.token_logprobs == [one.logprob for one in own]
    assert all(value < 0 for value in choice.logprobs.token_logprobs)
    for top, one in zip(choice.logprobs.top_logprobs, own, strict=True):
        assert list(top.values())[:2] == [value for _, value in one.alternatives]


async def a_seed_gives_the_same_samples_again(engine: dvrt.Engine, client: Client) -> None:
    own = await engine.complete(PROMPT, n=2, **DRAWN)
    for _ in range(2):
        again = await complete(client, n=2, **DRAWN)
        texts = [choice.text for choice in sorted(again.choices, key=lambda each: each.index)]
        assert texts == [sample.text for sample in own.samples]
        assert texts[0] != texts[1]
        assert again.usage.completion_tokens == 2 * DRAWN["max_tokens"]


async def a_stop_string_is_cut_off(client: Client) -> None:
    free = (await complete(client, **DRAWN)).choices[0].text
    stop = free[len(free) // 2 :][:6]
    wish = {"stop": [stop, "never there"], **DRAWN}
    (choice,) = (await complete(client, **wish)).choices
    assert (choice.text, choice.finish_reason) == (free[: free.index(stop)], "stop")
    chunks = [chunk async for chunk in await complete(client, stream=True, **wish)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == "stop"


async def a_chat_goes_through_the_models_template(engine: dvrt.Engine, client: Client) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Tell me a story about Pip the hedgehog."},
    ]
    prompt = engine.text.apply_chat_template(messages)
    assert engine.text.encode("<|user|>")[0] in prompt
    own = await engine.complete(prompt, **DRAWN)
    whole = await chat(client, messages, **DRAWN)
    assert whole.choices[0].message.content == own.text != ""
    assert whole.usage.prompt_tokens == len(prompt)
    stream = await chat(client, messages, stream=True, **DRAWN)
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == own.text


async def what_does_not_fit_is_refused(engine: dvrt.Engine, client: Client) -> None:
    prompt = PROMPT * 80
    n_prompt = len(engine.text.encode(prompt))
    assert n_prompt > CONTEXT
    for wish in ({}, {"stream": True}):
        with pytest.raises(openai.BadRequestError) as refusal:
            await complete(client, prompt, **wish)
        error = refusal.value
        assert (error.status_code, error.code) == (400, "context_length_exceeded")
        assert error.param == "prompt"
        assert f"the context is {CONTEXT} tokens; the prompt has {n_prompt}" in error.message


async def who_hangs_up_frees_rows(engine: dvrt.Engine, client: Client) -> None:
    stream = await complete(client, stream=True, **LONG)
    await anext(aiter(stream))
    assert engine.status().n_running == 1
    await stream.close()
    await until(lambda: engine.metrics.value("dvrt_http_hang_ups_total") == 1)
    assert engine.status().n_running == 0
    assert engine.metrics.value("dvrt_requests_total", reason="cancelled") == 1


async def a_full_queue_says_when_to_come_again(engine: dvrt.Engine, client: Client) -> None:
    calls = [asyncio.create_task(complete(client, **LONG)) for _ in range(ROWS + MAX_QUEUE)]
    await until(lambda: engine.status().n_queued == MAX_QUEUE)
    assert engine.status().n_running == ROWS
    assert engine.metrics.value("dvrt_rows_in_use") == ROWS == engine.metrics.value("dvrt_rows")
    assert engine.metrics.value("dvrt_requests_open") == ROWS + MAX_QUEUE
    with pytest.raises(openai.RateLimitError) as refusal:
        await complete(client, max_tokens=1)
    assert (refusal.value.status_code, refusal.value.code) == (429, "queue_full")
    assert int(refusal.value.response.headers["retry-after"]) >= 1
    assert f"{MAX_QUEUE} requests wait already" in refusal.value.message
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await until(lambda: (engine.status().n_running, engine.status().n_queued) == (0, 0))
    again = await complete(client, **DRAWN)
    assert again.usage.completion_tokens == DRAWN["max_tokens"]


async def all_of_it_was_counted(engine: dvrt.Engine, server: Any) -> None:
    status, _, text = await ask(server, get("/metrics", headers=f"authorization: Bearer {KEY}\r\n"))
    assert status == 200
    value = engine.metrics.value
    n_finished = engine.status().n_finished
    assert f'dvrt_requests_total{{reason="cancelled"}} {1 + ROWS + MAX_QUEUE}.0' in text.decode()
    assert value("dvrt_requests_total", reason="stop") == 2
    assert value("dvrt_requests_submitted_total") == value("dvrt_request_seconds_count")
    assert value("dvrt_request_seconds_count") == n_finished
    assert value("dvrt_requests_rejected_total", reason="queue_full") == 1
    assert value("dvrt_requests_rejected_total", reason="context_length_exceeded") == 2
    assert value("dvrt_inter_token_seconds_count") > n_finished
    assert value("dvrt_rows_in_use") == value("dvrt_requests_open") == 0
