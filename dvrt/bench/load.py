"""``bench load``: an open-loop client against any OpenAI-compatible server.

Requests are sent when they are due, however many are unanswered. All times count from the moment
at which a request was due, so that a client or server that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dvrt.bench.load_options import LoadOptions
from dvrt.bench.load_report import LoadReport, Outcome
from dvrt.bench.workload import Planned, prompt_ids, prompt_text
from dvrt.errors import ConfigError, DvrtError

try:
    import httpx
except ModuleNotFoundError as error:  # dvrt itself does without
    raise ConfigError("bench load needs the package httpx; pip install httpx") from error


async def run_load(options: LoadOptions) -> LoadReport:
    """Send all requests and wait for every answer, each for ``limit_s`` at most.

    Raises ConfigError for options that cannot work and for a server that does not answer at all.
    Cancelled, it ends all requests.
    """
    planned = options.plan()
    headers = {} if options.api_key is None else {"authorization": f"Bearer {options.api_key}"}
    async with httpx.AsyncClient(
        base_url=options.base_url,
        headers=headers,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=None,
        trust_env=False,
    ) as client:
        model = options.model or await _first_model(client, options)
        return await _Run(client, replace(options, model=model)).run(planned)


async def _first_model(client: httpx.AsyncClient, options: LoadOptions) -> str:
    try:
        async with asyncio.timeout(options.limit_s):
            answer = await client.get("/v1/models")
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, TimeoutError) as error:
        raise ConfigError(f"{options.url} does not list its models: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{options.url} is no OpenAI-compatible server") from error


class _RequestFailed(DvrtError):
    """Ends one request; the text is its kind."""


@dataclass(slots=True)
class _Answer:
    """What has been seen of one streamed answer."""

    first: float | None = None
    last: float | None = None
    n_events: int = 0
    usage: dict[str, Any] = field(default_factory=dict)

    def take(self, event: dict[str, Any], now: float) -> None:
        if event.get("error"):
            raise _RequestFailed("stream_error")
        self.usage = event.get("usage") or self.usage
        if any(_says_something(choice) for choice in event.get("choices", ())):
            self.first = now if self.first is None else self.first
            self.last = now
            self.n_events += 1


def _says_something(choice: dict[str, Any]) -> bool:
    said = choice.get("text") or choice.get("token_ids")
    return bool(said or (choice.get("delta") or {}).get("content") or choice.get("finish_reason"))


class _Run:
    """One run against one server. Reads perf_counter: uvloop's own clock has whole milliseconds."""

    def __init__(self, client: httpx.AsyncClient, options: LoadOptions) -> None:
        self._client = client
        self._options = options
        self._path = "/v1/chat/completions" if options.chat else "/v1/completions"

    async def run(self, planned: Sequence[Planned]) -> LoadReport:
        bodies = [self._body(one) for one in planned]
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for one, body in zip(planned, bodies, strict=True):
                await asyncio.sleep(max(0.0, start + one.arrival_s - time.perf_counter()))
                tasks.append(group.create_task(self._send(one, body, start + one.arrival_s)))
        outcomes = [task.result() for task in tasks]
        duration_s = time.perf_counter() - start
        return LoadReport(options=self._options, outcomes=outcomes, duration_s=duration_s)

    def _body(self, planned: Planned) -> bytes:
        options = self._options
        body: dict[str, Any] = {
            "model": options.model,
            "max_tokens": planned.n_output,
            "temperature": options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if options.ignore_eos:
            body["ignore_eos"] = True
        text = prompt_text(planned, seed=options.seed) if options.prompts == "text" else ""
        if options.chat:
            body["messages"] = [{"role": "user", "content": text}]
        elif text:
            body["prompt"] = text
        else:
            body["prompt"] = prompt_ids(
                planned, seed=options.seed, first=options.first_id, stop=options.stop_id
            )
        return json.dumps(body).encode()

    async def _send(self, planned: Planned, body: bytes, due: float) -> Outcome:
        late_s = time.perf_counter() - due
        answer = _Answer()
        error: str | None = None
        try:
            async with asyncio.timeout(self._options.limit_s):
                await self._receive(body, answer)
        except (TimeoutError, httpx.TimeoutException):
            error = "timeout"
        except httpx.ConnectError:
            error = "connect"
        except httpx.HTTPError:
            error = "cut_off"
        except _RequestFailed as failure:
            error = str(failure)
        return Outcome(
            planned=planned,
            late_s=late_s,
            first_token_s=None if answer.first is None else answer.first - due,
            total_s=None if answer.last is None else answer.last - due,
            n_prompt=answer.usage.get("prompt_tokens") or planned.n_prompt,
            n_generated=answer.usage.get("completion_tokens") or answer.n_events,
            error=error,
        )

    async def _receive(self, body: bytes, answer: _Answer) -> None:
        headers = {"content-type": "application/json"}
        async with self._client.stream(
            "POST", self._path, content=body, headers=headers
        ) as response:
            if response.status_code != 200:
                raise _RequestFailed(f"http_{response.status_code}")
            async for data in sse_data(response.aiter_bytes()):
                if data == b"[DONE]":
                    break
                answer.take(_event(data), time.perf_counter())
            else:
                raise _RequestFailed("cut_off")
        if answer.first is None:
            raise _RequestFailed("empty")


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data lines of a stream of server-sent events; an unfinished last line is left out."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise _RequestFailed("bad_answer") from None
    if not isinstance(event, dict):
        raise _RequestFailed("bad_answer")
    return event
