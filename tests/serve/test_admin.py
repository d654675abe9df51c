"""Changing the split over HTTP: who may, what is understood, how failures are told."""

from __future__ import annotations

from typing import Any

import pytest

from dvrt.errors import ConfigError, StageFailed, Unavailable
from dvrt.serve.admin import RebalanceEndpoint
from dvrt.serve.limits import HttpLimits
from tests.serve.client import ask, get, post, served
from tests.serve.fake_engine import FakeEngine

JSON = "content-type: application/json\r\n"
PATH = "/admin/rebalance"


class Changing(FakeEngine):
    """Writes down the splits that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.splits: list[dict[str, Any]] = []
        self.error: Exception | None = None

    async def rebalance(self, **split: Any) -> None:
        if self.error is not None:
            raise self.error
        self.splits.append(split)


async def test_a_split_is_passed_on():
    engine = Changing()
    split = {"prompt_stages": 1, "token_stages": 2}
    async with served(engine) as (server, _):
        found, _, body = await ask(server, post(PATH, split, headers=JSON))
    assert (found, body) == (200, {"status": "ok", **split})
    assert engine.splits == [split]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConfigError("stages is 9; the model has only 5 layers"), 400, "bad_split"),
        (Unavailable("the split is being changed already"), 503, None),
        (StageFailed("rebalance", "it was undone"), 500, "stage_failed"),
        (RuntimeError("a bug"), 500, "internal_error"),
    ],
)
async def test_failures_are_told(error, status, code, caplog):
    engine = Changing()
    engine.error = error
    async with served(engine) as (server, _):
        found, _, body = await ask(server, post(PATH, {"stages": 9}, headers=JSON))
    assert (found, body["error"]["code"]) == (status, code)
    assert ("a bug" in body["error"]["message"]) is False
    assert bool(caplog.records) is (code == "internal_error")


@pytest.mark.parametrize(
    ("request_bytes", "status", "text"),
    [
        (post(PATH, {"stages": 1}), 415, "content-type application/json"),
        (post(PATH, b"[1]", headers=JSON), 400, "must be a JSON object"),
        (post(PATH, b"{", headers=JSON), 400, "not valid JSON"),
        (post(PATH, {"stage": 1}, headers=JSON), 400, "unknown key 'stage'"),
        (get(PATH), 405, "another method"),
    ],
)
async def test_what_is_no_split_is_refused(request_bytes, status, text):
    engine = Changing()
    async with served(engine) as (server, _):
        found, _, body = await ask(server, request_bytes)
    assert found == status
    assert text in body["error"]["message"]
    assert engine.splits == []


async def test_with_a_key_the_key_decides():
    engine = Changing()
    async with served(engine, api_key="right") as (server, _):
        for key, status in (("wrong", 401), ("right", 200)):
            headers = f"{JSON}authorization: Bearer {key}\r\n"
            found, _, _ = await ask(server, post(PATH, {"stages": 1}, headers=headers))
            assert found == status
    assert len(engine.splits) == 1


@pytest.mark.parametrize("client", [("10.1.2.3", 99), ("::ffff:10.1.2.3", 9), ("a name", 9), None])
@pytest.mark.parametrize("has_key", [False, True])
async def test_without_a_key_only_this_machine_may(client, has_key):
    engine, sent = Changing(), []
    endpoint = RebalanceEndpoint(engine, HttpLimits(), has_key=has_key)
    scope = {
        "type": "http",
        "client": client,
        "headers": [(b"content-type", b"application/json")],
        "state": {"request_id": "r"},
    }

    async def receive():
        return {"type": "http.request", "body": b'{"stages": 2}', "more_body": False}

    async def send(message):
        sent.append(message)

    await endpoint(scope, receive, send)
    assert sent[0]["status"] == (200 if has_key else 403)
    assert bool(engine.splits) is has_key
