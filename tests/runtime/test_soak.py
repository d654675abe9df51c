"""Two hundred streaming clients over HTTP, a third leaving early: nothing lost, nothing left.

The hash model's text depends on every entry of a log, so a client that got another one's token, or
whose log was disturbed, would see wrong token ids.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import dvrt
from dvrt.models.tiny import write_tiny
from dvrt.serve.server import Server

N_CLIENTS = 200
N_PROMPTS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("soak") / "tiny", "gpt2", n_layers=2)


def body_of(i: int, *, stream: bool) -> dict[str, Any]:
    rng = random.Random(i)
    return {
        "model": "tiny",
        "prompt": [rng.randrange(300) for _ in range(rng.randint(1, 60))],
        "max_tokens": rng.randint(4, 24),
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": stream,
    }


async def stream_ids(client: httpx.AsyncClient, i: int, leave_after: int | None) -> list[int]:
    ids: list[int] = []
    async with client.stream("POST", "/v1/completions", json=body_of(i, stream=True)) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    ids += choice.get("token_ids") or []
            if leave_after is not None and len(ids) >= leave_after:
                break
    return ids


async def soak(model: Path, seconds: float) -> dict[str, Any]:
    counts = {"whole": 0, "left": 0, "wrong": 0}
    async with (
        dvrt.launch(
            model, stages=2, device="null", null_step_ms=2, batch_size=16, served_name="tiny"
        ) as engine,
        Server(engine, host="127.0.0.1", port=0) as server,
    ):
        right = [
            (await engine.complete(**_direct(body_of(i, stream=False)))).token_ids
            for i in range(N_PROMPTS)
        ]
        ends, memory = time.monotonic() + seconds, []

        async def client(number: int, http: httpx.AsyncClient) -> None:
            rng = random.Random(number)
            while time.monotonic() < ends:
                i = rng.randrange(N_PROMPTS)
                leave_after = rng.randint(1, 3) if rng.random() < 1 / 3 else None
                ids = await stream_ids(http, i, leave_after)
                expected = list(right[i][: len(ids)] if leave_after else right[i])
                counts["wrong"] += ids != expected
                counts["left" if leave_after else "whole"] += 1

        async def watch_memory() -> None:
            while time.monotonic() < ends:
                family = [psutil.Process(), *psutil.Process().children(recursive=True)]
                memory.append(sum(process.memory_info().rss for process in family))
                await asyncio.sleep(seconds / 40)

        limits = httpx.Limits(max_connections=N_CLIENTS, max_keepalive_connections=N_CLIENTS)
        async with (
            httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as http,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(watch_memory())
            for number in range(N_CLIENTS):
                group.create_task(client(number, http))
        async with asyncio.timeout(30):
            while engine.status().n_running or engine.status().n_queued:
                await asyncio.sleep(0.01)
        third = len(memory) // 3
        return {
            **counts,
            "growth": max(memory[-third:]) / max(memory[third : 2 * third]),
            "finished": engine.status().n_finished,
        }


def _direct(body: dict[str, Any]) -> dict[str, Any]:
    known = ("prompt", "max_tokens", "temperature", "ignore_eos")
    return {name: body[name] for name in known}


@pytest.mark.may_block
@pytest.mark.parametrize(
    "seconds", [4.0, pytest.param(120.0, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_two_hundred_clients(model: Path, seconds: float) -> None:
    seen = asyncio.run(soak(model, seconds))
    assert seen["wrong"] == 0
    assert seen["whole"] > 20
    assert seen["left"] > 10
    assert seen["finished"] == N_PROMPTS + seen["whole"] + seen["left"]
    if seconds > 60:
        assert seen["growth"] < 1.05
        print(seen)
