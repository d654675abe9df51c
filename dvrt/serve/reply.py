"""One HTTP answer on its way: a JSON body, or server-sent events, or an error in either."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Send

from dvrt.serve.refusal import error_body, error_headers, error_status

_EVENT_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

_DONE = b"data: [DONE]\n\n"
_PIECE_BYTES = 32 << 10


def to_json(value: Any) -> bytes:
    """ASCII, so that no client splits lines at characters that only some call line ends."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class Reply:
    """Sends one answer; ``fail`` may end it at any point."""

    def __init__(self, send: Send, *, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._is_begun = False
        self._is_ended = False

    async def whole(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The answer in one piece."""
        length = {"content-type": content_type, "content-length": str(len(body))}
        await self._begin(status, {**length, **(headers or {})})
        await self._end(body)

    async def events(self, values: Sequence[Any], *, event_id: str | None = None) -> None:
        """The next events of a stream, in one write; the first ones begin it.

        ``event_id`` is that of the last one, which a client may come back with.
        """
        if not self._is_begun:
            await self._begin(200, _EVENT_HEADERS)
        parts = [b"data: %b\n\n" % to_json(value) for value in values]
        if event_id is not None and parts:
            parts.insert(-1, b"id: %b\n" % event_id.encode())
        body = b"".join(parts)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end_events(self) -> None:
        """The end of a stream that is complete."""
        await self._end(_DONE)

    async def fail(self, error: Exception) -> None:
        """Tell the client; within a stream as an event, after which it ends without [DONE]."""
        body = error_body(error, request_id=self._request_id)
        if not self._is_begun:
            await self.whole(
                to_json(body), status=error_status(error), headers=error_headers(error)
            )
        elif not self._is_ended:
            await self._end(b"data: %b\n\n" % to_json(body))

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._is_begun = True
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _end(self, body: bytes) -> None:
        """A long body goes in pieces, so that ``send`` waits for the client and returns only when
        all but the last few kilobytes are with it."""
        self._is_ended = True
        if len(body) > _PIECE_BYTES:
            for at in range(0, len(body), _PIECE_BYTES):
                piece = body[at : at + _PIECE_BYTES]
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            body = b""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
