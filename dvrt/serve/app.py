"""The ASGI application: which path is answered by what."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dvrt.errors import RequestRejected
from dvrt.serve.admin import RebalanceEndpoint
from dvrt.serve.calls import Calls
from dvrt.serve.gate import Gate
from dvrt.serve.generate import ChatEndpoint, CompletionEndpoint, unknown_model
from dvrt.serve.limits import HttpLimits
from dvrt.serve.refusal import Refusal, error_body, error_headers
from dvrt.serve.reply import to_json
from dvrt.serve.served import Served


def create_app(
    engine: Served,
    *,
    api_key: str | None = None,
    limits: HttpLimits | None = None,
    calls: Calls | None = None,
) -> Starlette:
    """The HTTP side of ``engine``, for any ASGI server that sends http.disconnect.

    With ``api_key``, all but /health and /metrics wants it as a bearer token. ``calls`` lets a
    server end the calls that are running.
    """
    bounds = limits if limits is not None else HttpLimits()
    running = calls if calls is not None else Calls()
    pages = Pages(engine)
    rebalance = RebalanceEndpoint(engine, bounds, has_key=api_key is not None)
    app = Starlette(
        routes=[
            Route("/health", pages.health),
            Route("/metrics", pages.metrics),
            Route("/status", pages.status),
            Route("/v1/models", pages.models),
            Route("/v1/models/{model:path}", pages.model),
            Route("/v1/completions", CompletionEndpoint(engine, running, bounds), methods=["POST"]),
            Route("/v1/chat/completions", ChatEndpoint(engine, running, bounds), methods=["POST"]),
            Route("/admin/rebalance", rebalance, methods=["POST"]),
        ],
        middleware=[Middleware(Gate, metrics=engine.metrics, api_key=api_key)],
        exception_handlers={HTTPException: _no_such_page, RequestRejected: _rejected},
    )
    app.router.redirect_slashes = False
    return app


class Pages:
    """What can be asked of an engine beside generating."""

    def __init__(self, engine: Served) -> None:
        self._engine = engine
        self._created = int(time.time())

    async def health(self, request: Request) -> Response:
        """200 only while the pipeline makes progress."""
        is_healthy = self._engine.is_healthy()
        status = self._engine.status()
        body = {"status": "ok" if is_healthy else "unhealthy", "state": status.state}
        return _json(body, status=200 if is_healthy else 503)

    async def metrics(self, request: Request) -> Response:
        metrics = self._engine.metrics
        return Response(metrics.render(), headers={"content-type": metrics.content_type})

    async def status(self, request: Request) -> Response:
        return _json(asdict(self._engine.status()))

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self._engine.model.name:
            raise unknown_model(name, self._engine)
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        card = self._engine.model
        return {
            "id": card.name,
            "object": "model",
            "created": self._created,
            "owned_by": "dvrt",
            "max_model_len": card.max_context,
        }


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(to_json(value), status_code=status, media_type="application/json")


def _no_such_page(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = f"{request.method[:20]} {request.url.path[:200]}"
    text = {404: f"there is no {path}", 405: f"{path}: the path takes another method"}
    message = text.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    refusal = Refusal(error.status_code, message, code=code, headers=error.headers)
    return _rejected(request, refusal)


def _rejected(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRejected)
    body = error_body(error, request_id=request.state.request_id)
    return Response(
        to_json(body),
        status_code=error.status,
        media_type="application/json",
        headers=error_headers(error),
    )
