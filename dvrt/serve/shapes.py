"""The answers of the two generating endpoints: whole, and as the chunks of a stream.

Pure: tokens in, JSON values out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from dvrt.requests import FinishReason
from dvrt.results import Token
from dvrt.serve.logprobs import chat_logprobs, completion_logprobs
from dvrt.serve.served import Codec

_REASONS = {FinishReason.EOS: "stop", FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}

Choice = dict[str, Any]


def finish_reason(token: Token) -> str | None:
    """OpenAI's word where it has one, else our own."""
    reason = token.finish_reason
    return None if reason is None else _REASONS.get(reason, reason.value)


@dataclass(slots=True, kw_only=True)
class Shape(ABC):
    """One call's answer: ``envelope`` around choices of a form that the subclass knows.

    ``shows_ids`` adds ``token_ids`` to every choice. ``tells_usage`` gives every chunk a ``usage``,
    null but in the last.
    """

    call_id: str
    model: str
    created: int
    codec: Codec | None
    shows_logprobs: bool
    shows_ids: bool
    tells_usage: bool = False

    @property
    @abstractmethod
    def whole_object(self) -> str: ...

    @property
    @abstractmethod
    def chunk_object(self) -> str: ...

    @abstractmethod
    def whole_choice(self, index: int, tokens: Sequence[Token]) -> Choice:
        """One finished sample."""

    @abstractmethod
    def opening(self, index: int) -> Choice | None:
        """What a stream says of a choice before its first token."""

    @abstractmethod
    def chunk_choice(self, index: int, token: Token) -> Choice:
        """What one token adds to a choice."""

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._envelope(self.whole_object), "choices": choices, "usage": usage}

    def chunk(
        self, choices: Sequence[Choice], usage: dict[str, int] | None = None
    ) -> dict[str, Any]:
        told = {"usage": usage} if self.tells_usage else {}
        return {**self._envelope(self.chunk_object), "choices": choices, **told}

    def says_something(self, token: Token) -> bool:
        """Whether a chunk for this token would hold anything."""
        extras = (self.shows_ids or self.shows_logprobs) and token.id >= 0
        return bool(token.text) or extras or token.finish_reason is not None

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self.call_id, "object": kind, "created": self.created, "model": self.model}

    def _ids(self, tokens: Sequence[Token]) -> Choice:
        return {"token_ids": [one.id for one in tokens if one.id >= 0]} if self.shows_ids else {}


@dataclass(slots=True, kw_only=True)
class CompletionShape(Shape):
    """/v1/completions. ``echoes`` are the prompts' texts, by choice, where they were asked for."""

    echoes: Sequence[str] = ()
    _said: dict[int, int] = field(default_factory=dict)

    @property
    def whole_object(self) -> str:
        return "text_completion"

    @property
    def chunk_object(self) -> str:
        return "text_completion"

    def whole_choice(self, index: int, tokens: Sequence[Token]) -> Choice:
        echo = self.echoes[index] if self.echoes else ""
        text = echo + "".join(token.text for token in tokens)
        return self._choice(index, text, tokens, finish_reason(tokens[-1]), start=0)

    def opening(self, index: int) -> Choice | None:
        return self._choice(index, self.echoes[index], (), None, start=0) if self.echoes else None

    def chunk_choice(self, index: int, token: Token) -> Choice:
        start = self._said.get(index, 0)
        self._said[index] = start + len(token.text)
        return self._choice(index, token.text, (token,), finish_reason(token), start=start)

    def _choice(
        self, index: int, text: str, tokens: Sequence[Token], reason: str | None, *, start: int
    ) -> Choice:
        logprobs = None
        if self.shows_logprobs:
            offsets = list(accumulate((len(token.text) for token in tokens), initial=start))[:-1]
            logprobs = completion_logprobs(tokens, self.codec, offsets)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
            **self._ids(tokens),
        }


@dataclass(slots=True, kw_only=True)
class ChatShape(Shape):
    """/v1/chat/completions."""

    @property
    def whole_object(self) -> str:
        return "chat.completion"

    @property
    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def whole_choice(self, index: int, tokens: Sequence[Token]) -> Choice:
        content = "".join(token.text for token in tokens)
        message = {"role": "assistant", "content": content}
        return self._choice(index, "message", message, tokens, finish_reason(tokens[-1]))

    def opening(self, index: int) -> Choice | None:
        return self._choice(index, "delta", {"role": "assistant", "content": ""}, (), None)

    def chunk_choice(self, index: int, token: Token) -> Choice:
        delta = {"content": token.text} if token.text else {}
        return self._choice(index, "delta", delta, (token,), finish_reason(token))

    def _choice(
        self,
        index: int,
        key: str,
        value: dict[str, str],
        tokens: Sequence[Token],
        reason: str | None,
    ) -> Choice:
        logprobs = chat_logprobs(tokens, self.codec) if self.shows_logprobs and tokens else None
        return {
            "index": index,
            key: value,
            "logprobs": logprobs,
            "finish_reason": reason,
            **self._ids(tokens),
        }
