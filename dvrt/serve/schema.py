"""What may stand in a body of the two generating endpoints, checked strictly.

Neutral values of what dvrt does not support are accepted, everything else that would change the
meaning of a request is refused by name. Knows neither engines nor HTTP.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dvrt.serve.refusal import Refusal

MAX_STOP_STRINGS = 4
_INT32 = (1 << 31) - 1

_IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls"),
    }
)
"""Accepted and without effect: none of them changes which tokens are right."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
_NEUTRAL_COMPLETION = {**_NEUTRAL, "suffix": (None, "")}
_NEUTRAL_CHAT = {
    **_NEUTRAL,
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
}


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    is_list = isinstance(strings, list) and all(isinstance(one, str) for one in strings)
    if not is_list or len(strings) > MAX_STOP_STRINGS:
        raise ValueError(f"must be a string or a list of at most {MAX_STOP_STRINGS} strings")
    if not all(strings):
        raise ValueError("holds an empty string, which every text contains")
    return tuple(strings)


def _joined_parts(value: Any) -> Any:
    """OpenAI lets a message's content be a list of parts; text parts are one text."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"has a part of type {kind!r}; only text parts are supported")
        texts.append(part["text"])
    return "".join(texts)


def _without_nulls(value: Any) -> Any:
    """Clients send their own answers back with every unused field null or empty."""
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if item not in (None, [])}


Flag = Annotated[bool, BeforeValidator(lambda value: False if value is None else value)]
Count = Annotated[int, Field(ge=1, le=_INT32)]
TokenId = Annotated[int, Field(ge=0, le=_INT32)]
StopStrings = Annotated[tuple[str, ...], BeforeValidator(_stop_strings)]
TokenIds = Annotated[list[TokenId], BeforeValidator(lambda value: [] if value is None else value)]
Text = Annotated[str, BeforeValidator(_joined_parts)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


class StreamOptions(_Strict):
    include_usage: Flag = False
    include_obfuscation: Flag = False


class GenerateBody(_Strict):
    """What both endpoints take; the last two groups are extensions of the OpenAI API."""

    model: str | None = None
    stream: Flag = False
    stream_options: StreamOptions | None = None
    n: Annotated[Count, BeforeValidator(lambda value: 1 if value is None else value)] = 1
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: StopStrings = ()

    top_k: Annotated[int, Field(ge=0, le=_INT32)] | None = None
    repetition_penalty: float | None = None
    stop_token_ids: TokenIds = Field(default_factory=list)
    ignore_eos: Flag = False
    deadline_s: Annotated[float, Field(gt=0)] | None = None

    return_token_ids: Flag = False

    def engine_options(self) -> dict[str, Any]:
        """The keyword options of ``Engine.generate``. A negative seed counts from 2**64 down."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": None if self.seed is None else self.seed % (1 << 64),
            "n": self.n,
            "stop": self.stop,
            "stop_ids": tuple(self.stop_token_ids),
            "ignore_eos": self.ignore_eos,
            "deadline_s": self.deadline_s,
        }


class CompletionBody(GenerateBody):
    """POST /v1/completions; ``prompt`` is checked where it is split."""

    prompt: Any
    echo: Flag = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Count | None = None

    def engine_options(self) -> dict[str, Any]:
        return {**super().engine_options(), "logprobs": self.logprobs}


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates know it: what OpenAI calls a developer is a system to them."""
        role = "system" if self.role == "developer" else self.role
        named = {"name": self.name} if self.name is not None else {}
        return {"role": role, "content": self.content, **named}


class ChatBody(GenerateBody):
    """POST /v1/chat/completions."""

    messages: Annotated[
        list[Annotated[ChatMessage, BeforeValidator(_without_nulls)]], Field(min_length=1)
    ]
    logprobs: Flag = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_completion_tokens: Count | None = None

    def engine_options(self) -> dict[str, Any]:
        return {
            **super().engine_options(),
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "logprobs": self.top_logprobs or 0 if self.logprobs else None,
        }


def parse_completion(body: dict[str, Any]) -> CompletionBody:
    """A checked completion request. Raises Refusal (400) naming the field at fault."""
    parsed = _parse(CompletionBody, body, _NEUTRAL_COMPLETION)
    if parsed.best_of not in (None, parsed.n):
        raise Refusal(400, "best_of other than n is not supported", param="best_of")
    if parsed.echo and parsed.logprobs is not None:
        raise Refusal(400, "echo with logprobs is not supported", param="echo")
    return parsed


def parse_chat(body: dict[str, Any]) -> ChatBody:
    """A checked chat request. Raises Refusal (400) naming the field at fault."""
    parsed = _parse(ChatBody, body, _NEUTRAL_CHAT)
    if parsed.top_logprobs is not None and not parsed.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    both = parsed.max_tokens, parsed.max_completion_tokens
    if None not in both and both[0] != both[1]:
        text = "max_tokens and max_completion_tokens differ; send one of them"
        raise Refusal(400, text, param="max_tokens")
    return parsed


B = TypeVar("B", bound=GenerateBody)


def _parse(kind: type[B], body: dict[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> B:
    for name, values in neutral.items():
        if body.get(name) not in values:
            raise Refusal(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    rest = {key: value for key, value in body.items() if key not in _IGNORED | neutral.keys()}
    try:
        parsed = kind.model_validate(rest)
    except ValidationError as error:
        raise _refusal(error, [*kind.model_fields, *neutral, *_IGNORED]) from None
    if parsed.stream_options is not None and not parsed.stream:
        raise Refusal(400, "stream_options needs stream to be true", param="stream_options")
    return parsed


def _refusal(error: ValidationError, known: list[str]) -> Refusal:
    first, *others = error.errors(include_url=False, include_input=False)
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1)
        text = f"{name[:80]} is not a known parameter" + (f"; is it {near[0]}?" if near else "")
    elif first["type"] == "missing":
        text = f"{name} is missing"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        text = f"{name}: {reason[0].lower()}{reason[1:]}"
    if others:
        text += f" (and {len(others)} more)"
    return Refusal(400, text, param=name[:80], code="invalid_parameter")
