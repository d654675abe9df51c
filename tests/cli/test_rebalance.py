"""``dvrt rebalance``: what is sent, what is understood of the answer, what never leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from dvrt.cli.rebalance import rebalance
from dvrt.errors import ConfigError, DvrtError, Unavailable


class Operator(HTTPServer):
    """Answers every request with ``status`` and ``answer``, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.answer = 200, b"{}"
        self.seen: list[tuple[str, Any, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Operator

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, body, self.headers["authorization"]))
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *words: object) -> None:
        """Says nothing."""


@pytest.fixture
def operator() -> Iterator[Operator]:
    with Operator() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def call(url: str, **given: Any) -> None:
    names = ("prompt_stages", "token_stages", "stages", "api_key")
    rebalance(url=url, **{name: given.get(name) for name in names})


def test_the_split_is_sent(operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    call(operator.url + "/", prompt_stages=1, token_stages=2, api_key="k")
    body = {"prompt_stages": 1, "token_stages": 2}
    assert operator.seen == [("/admin/rebalance", body, "Bearer k")]
    assert capsys.readouterr().out == "serving with 1 prompt stages, 2 token stages\n"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b'{"error": {"message": "the cluster is recovering"}}', "the cluster is recovering"),
        (b"<html>", "the server answered with status 503"),
        (b"[]", "the server answered with status 503"),
    ],
)
def test_a_refusal_is_passed_on(operator: Operator, answer: bytes, text: str) -> None:
    operator.status, operator.answer = 503, answer
    with pytest.raises(DvrtError, match=text):
        call(operator.url, stages=2)


@pytest.mark.parametrize(
    "given", [{}, {"prompt_stages": 1}, {"stages": 1, "token_stages": 1}, {"stages": 0}]
)
def test_what_cannot_be_is_refused_here(operator: Operator, given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="stages"):
        call(operator.url, **given)
    assert operator.seen == []


def test_addresses_that_lead_nowhere() -> None:
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        call("localhost:8000", stages=1)
    with pytest.raises(Unavailable, match="127.0.0.1:9"):
        call("http://127.0.0.1:9", stages=1)
