"""Prompts as the two endpoints take them, made into token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dvrt.serve.refusal import Refusal
from dvrt.serve.schema import ChatBody
from dvrt.serve.served import Codec, Served

_LONG_TEXT = 16 << 10
"""From this many characters on, text is encoded in a thread, beside the event loop."""

Prompt = str | list[int]


def split_prompts(value: Any) -> list[Prompt]:
    """The single prompts in a body's ``prompt``. Raises Refusal (400) for anything else."""
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if isinstance(value, list) and value:
        wrong = [i for i, one in enumerate(value) if not isinstance(one, str) and not _is_ids(one)]
        if type(value[0]) is int:  # meant as one list of ids
            wrong = [i for i, one in enumerate(value) if type(one) is not int]
        if not wrong:
            return value
        raise _wrong(f"prompt[{wrong[0]}]", value[wrong[0]])
    raise _wrong("prompt", value)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _wrong(name: str, value: Any) -> Refusal:
    if value in ([], ""):
        return Refusal(400, f"{name} is empty; give at least one token", param="prompt")
    kind = type(value).__name__
    wanted = "a string, a list of token ids, or a list of either"
    return Refusal(400, f"{name} is {kind}; prompt must be {wanted}", param="prompt")


async def encode_prompts(engine: Served, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt. Raises Refusal for text where there is no tokenizer, and for ids
    outside the vocabulary."""
    for prompt in prompts:
        if not isinstance(prompt, str):
            _check_ids(prompt, engine.model.vocab_size)
    if not any(isinstance(prompt, str) for prompt in prompts):
        return [prompt for prompt in prompts if not isinstance(prompt, str)]
    codec = _codec(engine, param="prompt")

    def encode() -> list[list[int]]:
        return [codec.encode(one) if isinstance(one, str) else one for one in prompts]

    if sum(len(prompt) for prompt in prompts) < _LONG_TEXT:
        return encode()
    return await asyncio.to_thread(encode)


async def encode_chat(engine: Served, body: ChatBody) -> list[int]:
    """Token ids of a conversation by the checkpoint's chat template."""
    codec = _codec(engine, param="messages")
    messages = [message.for_template() for message in body.messages]
    if sum(len(message["content"]) for message in messages) < _LONG_TEXT:
        return codec.apply_chat_template(messages)
    return await asyncio.to_thread(codec.apply_chat_template, messages)


def _check_ids(ids: list[int], vocab_size: int) -> None:
    outside = min(ids) if min(ids) < 0 else max(ids)
    if not 0 <= outside < vocab_size:
        text = f"token id {outside} is outside the vocabulary of {vocab_size}"
        raise Refusal(400, text, param="prompt", code="token_out_of_range")


def _codec(engine: Served, *, param: str) -> Codec:
    if engine.text is None:
        text = f"{engine.model.name} has no tokenizer; send token ids to /v1/completions"
        raise Refusal(400, text, param=param, code="no_tokenizer")
    return engine.text
