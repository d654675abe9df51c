"""What an operator may change over HTTP while the engine serves: the split into stages."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from dvrt.errors import ConfigError, RequestRejected, StageFailed
from dvrt.serve.body import read_json
from dvrt.serve.limits import HttpLimits
from dvrt.serve.refusal import Refusal
from dvrt.serve.reply import Reply, to_json
from dvrt.serve.served import Served

logger = logging.getLogger("dvrt.serve")

SPLIT_KEYS = ("prompt_stages", "token_stages", "stages")


class RebalanceEndpoint:
    """POST with ``{"prompt_stages": P, "token_stages": T}`` or ``{"stages": S}``, as JSON.

    Answers when the new stages serve alone. Without an API key only clients of this machine may;
    the content type is insisted on because no web page can send it here unasked.
    """

    def __init__(self, engine: Served, limits: HttpLimits, *, has_key: bool) -> None:
        self._engine, self._limits, self._has_key = engine, limits, has_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(send, request_id=scope["state"]["request_id"])
        try:
            self._check(scope)
            split = _split(await read_json(receive, self._limits))
            await self._rebalance(split)
            await reply.whole(to_json({"status": "ok", **split}))
        except ClientDisconnect:
            self._engine.metrics.http_hang_up()
        except RequestRejected as error:
            await reply.fail(error)
        except Exception as error:
            logger.exception("request %s failed", scope["state"]["request_id"])
            await reply.fail(error)

    def _check(self, scope: Scope) -> None:
        if not self._has_key and not _is_local(scope):
            text = "without an API key only clients of this machine may do this"
            raise Refusal(403, text, code="not_allowed")
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip()
        if kind.lower() != "application/json":
            text = "send the body with content-type application/json"
            raise Refusal(415, text, code="wrong_content_type")

    async def _rebalance(self, split: dict[str, int]) -> None:
        try:
            await self._engine.rebalance(**split)
        except ConfigError as error:
            raise Refusal(400, str(error), code="bad_split") from error
        except StageFailed as error:
            raise Refusal(500, str(error), code="stage_failed") from error


def _split(body: dict[str, Any]) -> dict[str, int]:
    unknown = sorted(set(body) - set(SPLIT_KEYS))
    if unknown:
        text = f"unknown key {unknown[0][:64]!r}; there are {', '.join(SPLIT_KEYS)}"
        raise Refusal(400, text, param=unknown[0][:64], code="unknown_parameter")
    return body


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
