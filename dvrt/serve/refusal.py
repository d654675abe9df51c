"""Errors as OpenAI's clients expect them: an HTTP status and {"error": {...}}."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dvrt.errors import DvrtError, Overloaded, RequestRejected, StageFailed

_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error"}


class Refusal(RequestRejected):
    """A request that the HTTP side refuses itself, with the status that says why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.headers = dict(headers or {})


def error_status(error: Exception) -> int:
    """The status that fits; 500 for all that is not the caller's doing."""
    return error.status if isinstance(error, RequestRejected) else 500


def error_body(error: Exception, *, request_id: str) -> dict[str, Any]:
    """The body that tells a client about ``error``.

    A failure names the request, so that it can be found in the log; of a bug that is all it tells.
    """
    status = error_status(error)
    if isinstance(error, RequestRejected):
        return _body(status, str(error), param=error.param, code=error.code)
    if isinstance(error, DvrtError):
        text = f"{error} (request {request_id}); nothing more will come, please send it again"
        code = "stage_failed" if isinstance(error, StageFailed) else "engine_failed"
        return _body(status, text, code=code)
    return _body(status, f"internal error (request {request_id})", code="internal_error")


def error_headers(error: Exception) -> dict[str, str]:
    """Headers that go with an error's body; Retry-After has whole seconds, its -ms twin more."""
    if isinstance(error, Overloaded):
        return {
            "retry-after": str(max(1, math.ceil(error.retry_after_s))),
            "retry-after-ms": str(max(1, math.ceil(error.retry_after_s * 1000))),
        }
    return error.headers if isinstance(error, Refusal) else {}


def _body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
