"""Log probabilities in the shapes of the two APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dvrt.results import Token
from dvrt.serve.served import Codec

_LOWEST = -9999.0
"""What clients see for a probability of zero: JSON has no infinity."""


def completion_logprobs(
    tokens: Sequence[Token], codec: Codec | None, offsets: Sequence[int]
) -> dict[str, Any]:
    """The shape of /v1/completions. ``offsets`` say where in the text each token begins, as far as
    that is certain: a token whose text was held back begins where the held text does."""
    drawn = [(token, at) for token, at in zip(tokens, offsets, strict=True) if token.id >= 0]
    return {
        "tokens": [_name(token.id, codec) for token, _ in drawn],
        "token_logprobs": [_finite(token.logprob) for token, _ in drawn],
        "top_logprobs": [_by_name(token, codec) for token, _ in drawn],
        "text_offset": [at for _, at in drawn],
    }


def chat_logprobs(tokens: Sequence[Token], codec: Codec | None) -> dict[str, Any]:
    """The shape of /v1/chat/completions."""
    content = [
        {
            **_entry(token.id, token.logprob, codec),
            "top_logprobs": [_entry(id_, value, codec) for id_, value in token.alternatives],
        }
        for token in tokens
        if token.id >= 0
    ]
    return {"content": content, "refusal": None}


def _by_name(token: Token, codec: Codec | None) -> dict[str, float]:
    """Most probable first; of two tokens that read the same, the more probable one."""
    named: dict[str, float] = {}
    for id_, value in (*token.alternatives, (token.id, token.logprob)):
        named.setdefault(_name(id_, codec), _finite(value))
    return named


def _entry(id_: int, logprob: float | None, codec: Codec | None) -> dict[str, Any]:
    data = codec.token_bytes(id_) if codec is not None else None
    return {
        "token": _name(id_, codec),
        "logprob": _finite(logprob),
        "bytes": list(data) if data else None,
    }


def _name(id_: int, codec: Codec | None) -> str:
    """A token's text. Part of a character is named by its bytes, as OpenAI's older models do; a
    token without text, such as the end of one, by its id."""
    if codec is None:
        return f"token_id:{id_}"
    data = codec.token_bytes(id_)
    if data is None:
        return codec.decode([id_]) or f"token_id:{id_}"
    try:
        return data.decode() or f"token_id:{id_}"
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float | None) -> float:
    return max(_LOWEST, logprob) if logprob is not None else _LOWEST
