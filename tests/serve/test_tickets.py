"""Clients that come back: by key or request id, from the place they had, to the same answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import pytest

from dvrt.errors import RequestRejected
from dvrt.results import Token
from dvrt.serve.server import Server
from tests.serve.client import post, wire
from tests.serve.fake_engine import FakeEngine, expected_ids

PROMPT = [104, 105]
BODY = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "return_token_ids": True}
KEY = "idempotency-key: k1\r\n"


class Journalled(FakeEngine):
    """Keeps every token of every request, as a journal does."""

    is_journalled = True

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, tuple[list[int], list[Token]]] = {}
        self.lingering: list[str] = []

    async def knows(self, request_id: str) -> bool:
        return request_id in self.kept

    async def generate(
        self, prompt: str | Sequence[int], **options: Any
    ) -> AsyncGenerator[Token, None]:
        if options.pop("lingers", False):
            self.lingering.append(options["request_id"])
        tokens: list[Token] = []
        self.kept[options["request_id"]] = (list(prompt), tokens)  # type: ignore[arg-type]
        async for token in super().generate(prompt, **options):
            tokens.append(token)
            yield token

    async def resume(
        self,
        request_id: str,
        *,
        from_index: int = 0,
        prompt_ids: Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Token, None]:
        prompt, tokens = self.kept[request_id]
        if list(prompt_ids or ()) != prompt or options != self.options[request_id]:
            raise RequestRejected("made with other values", code="idempotency_mismatch")
        for token in tokens:
            yield token


async def call(engine: FakeEngine, headers: str, **changes: Any) -> tuple[int, str]:
    async with Server(engine, port=0) as server, wire(server) as connection:
        body = {**BODY, **changes}
        await connection.send(
            post("/v1/completions", body, headers=f"connection: close\r\n{headers}")
        )
        answer = (await connection.end()).decode()
    return int(answer.split()[1]), answer


def told(answer: str) -> list[tuple[str, list[int]]]:
    """(event id, token ids) of each event."""
    found: list[tuple[str, list[int]]] = []
    place = ""
    for line in answer.splitlines():
        if line.startswith("id: "):
            place = line.removeprefix("id: ")
        elif line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                found.append((place, choice["token_ids"]))
    assert "data: [DONE]" in answer
    return found


def ids(answer: str) -> list[int]:
    return [token for _, tokens in told(answer) for token in tokens]


@pytest.mark.parametrize("name", [KEY, "x-request-id: mine-1\r\n"])
async def test_the_rest_of_a_stream_comes_from_any_place(name: str) -> None:
    engine = Journalled()
    status, whole = await call(engine, name, stream=True)
    assert status == 200
    assert ids(whole) == expected_ids(PROMPT, 6)
    places = [place for place, _ in told(whole)]
    assert places == [str(n) for n in range(1, 7)]
    for n, place in enumerate(places, start=1):
        _, rest = await call(engine, f"{name}last-event-id: {place}\r\n", stream=True)
        assert ids(rest) == expected_ids(PROMPT, 6)[n:]
    _, again = await call(engine, name, stream=True)
    assert ids(again) == ids(whole)
    assert len(engine.began) == 1
    assert engine.lingering == engine.began


async def test_a_whole_answer_is_given_again_under_the_same_id() -> None:
    engine = Journalled()
    answers = [json.loads((await call(engine, KEY, n=2))[1].split("\r\n\r\n")[1]) for _ in "ab"]
    assert answers[0] == {**answers[1], "created": answers[0]["created"]}
    assert len(engine.began) == 1


async def test_choices_have_places_of_their_own() -> None:
    engine = Journalled()
    _, whole = await call(engine, KEY, stream=True, n=2)
    place, _ = told(whole)[3]
    _, rest = await call(engine, f"{KEY}last-event-id: {place}\r\n", stream=True, n=2)
    assert told(rest)[-1][0] == "6.6"
    assert len(ids(rest)) == 12 - sum(map(int, place.split(".")))


@pytest.mark.parametrize(
    ("headers", "changes", "status", "text"),
    [
        (f"{KEY}last-event-id: 3.1\r\n", {}, 400, "is of 2 choices; there are 1"),
        (f"{KEY}last-event-id: x\r\n", {}, 400, "Last-Event-ID"),
        (f"{KEY}last-event-id: {'9' * 40}\r\n", {}, 400, "Last-Event-ID"),
        ("idempotency-key: k2\r\nlast-event-id: 3\r\n", {}, 404, "unknown_request"),
        (f"idempotency-key: {'k' * 200}\r\n", {}, 400, "Idempotency-Key"),
        (KEY, {"prompt": [1]}, 400, "idempotency_mismatch"),
        (KEY, {"n": 2}, 400, "idempotency_mismatch"),
        (KEY, {"logprobs": 1}, 400, "idempotency_mismatch"),
        (KEY, {"stop": "x"}, 400, "idempotency_mismatch"),
        (KEY, {"max_tokens": 7}, 400, "idempotency_mismatch"),
    ],
)
async def test_what_does_not_fit_is_refused(
    headers: str, changes: dict[str, Any], status: int, text: str
) -> None:
    engine = Journalled()
    await call(engine, KEY, stream=True)
    got, answer = await call(engine, headers, stream=True, **changes)
    assert got == status
    assert text in answer


async def test_without_a_journal_names_mean_nothing_new() -> None:
    engine = FakeEngine()
    for _ in range(2):
        status, answer = await call(engine, f"{KEY}last-event-id: 3\r\n", stream=True)
        assert status == 200
        assert "\nid: " not in answer
    assert len(set(engine.began)) == 2
