"""A request's body: read within limits of size and time, and parsed as one JSON object."""

from __future__ import annotations

import asyncio
from typing import Any

import pydantic_core
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from dvrt.serve.limits import HttpLimits
from dvrt.serve.refusal import Refusal

_SWALLOWED = 4
"""A body is read, and dropped, up to this many times its limit, so that most clients, who send all
before they listen, see the refusal."""

_CLOSE = {"connection": "close"}


async def read_json(receive: Receive, limits: HttpLimits) -> dict[str, Any]:
    """The JSON object that a client sends.

    Raises Refusal (400, 408, 413), and ClientDisconnect for a client that leaves before its end.
    """
    return parse_object(await read_body(receive, limits))


async def read_body(receive: Receive, limits: HttpLimits) -> bytes:
    """The whole body. Raises as ``read_json`` does, 400 left out."""
    try:
        async with asyncio.timeout(limits.body_limit_s):
            return await _read(receive, limits.max_body_bytes)
    except TimeoutError:
        text = f"the body did not arrive within {limits.body_limit_s:g} seconds"
        raise Refusal(408, text, code="body_timeout", headers=_CLOSE) from None


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    body = bytearray()
    n_received, more = 0, True
    while more and n_received <= _SWALLOWED * limit_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, more = message.get("body", b""), message.get("more_body", False)
        n_received += len(piece)
        if n_received <= limit_bytes:
            body += piece
    if n_received > limit_bytes:
        text = f"the body is larger than {limit_bytes} bytes"
        raise Refusal(413, text, code="body_too_large", headers=_CLOSE)
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """``body`` as a JSON object. Raises Refusal with what is wrong and where.

    Strict: no NaN or infinities, no lone surrogates, and only so much nesting.
    """
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise Refusal(400, f"the body must be a JSON object, not a {kind}", code="invalid_json")
    return value
