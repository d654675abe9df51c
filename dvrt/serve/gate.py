"""What every request passes, whatever its path: a request id, the key, the response count."""

from __future__ import annotations

import hmac
import logging
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dvrt.observe.metrics import Metrics
from dvrt.serve.refusal import Refusal
from dvrt.serve.reply import Reply

logger = logging.getLogger("dvrt.serve")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

OPEN_PATHS = frozenset({"/health", "/metrics"})
"""What probes and scrapers read; needs no key."""

KNOWN_PATHS = OPEN_PATHS | {
    "/status",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/admin/rebalance",
}


class Gate:
    """ASGI middleware. Adds ``request_id`` to the scope's state and x-request-id to the response.

    Nothing but CancelledError leaves it: an error that comes here is a bug, logged and answered
    with 500 where no answer has begun.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, api_key: str | None) -> None:
        self._app = app
        self._metrics = metrics
        self._key = None if api_key is None else api_key.strip().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        is_begun = False

        async def send_marked(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
                self._metrics.http_response(_route(scope["path"]), message["status"])
            await send(message)

        reply = Reply(send_marked, request_id=request_id)
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await reply.fail(refusal)
            return
        try:
            await self._app(scope, receive, send_marked)
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if is_begun:
                raise
            await reply.fail(error)

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        if self._key is None or path in OPEN_PATHS:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if not given:
            text = "no API key; send the header Authorization: Bearer KEY"
            return _unauthorised(text, code="missing_api_key")
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
        if scheme.lower() != "bearer" or not is_right:
            return _unauthorised("the API key is wrong", code="invalid_api_key")
        return None


def _unauthorised(text: str, *, code: str) -> Refusal:
    return Refusal(401, text, code=code, headers={"www-authenticate": "Bearer"})


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _route(path: str) -> str:
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in KNOWN_PATHS else "other"
