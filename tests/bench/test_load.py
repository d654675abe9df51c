"""The open-loop client, against dvrt's own HTTP side and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import random
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from dvrt.bench.common import make_report
from dvrt.bench.load import run_load, sse_data
from dvrt.bench.load_options import LoadOptions
from dvrt.bench.load_report import LoadReport, Outcome
from dvrt.bench.workload import Length, Planned, plan_requests, prompt_ids, prompt_text, read_trace
from dvrt.errors import ConfigError, StageFailed
from dvrt.serve.server import Server
from tests.serve.fake_engine import FakeEngine

LENGTHS = [Length(n_prompt=4, n_output=8)]


async def run(engine: FakeEngine, **options: object) -> LoadReport:
    async with Server(engine, port=0) as server:
        return await run_load(LoadOptions(url=server.url, **options))


def test_poisson_arrivals() -> None:
    planned = plan_requests(LENGTHS, n_requests=4000, rate_per_s=50, seed=3)
    times = [one.arrival_s for one in planned]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert planned == plan_requests(LENGTHS, n_requests=4000, rate_per_s=50, seed=3)
    assert planned != plan_requests(LENGTHS, n_requests=4000, rate_per_s=50, seed=4)


def test_all_at_once() -> None:
    planned = plan_requests(LENGTHS, n_requests=3, rate_per_s=math.inf, seed=0)
    assert [one.arrival_s for one in planned] == [0, 0, 0]


@pytest.mark.parametrize(("n", "rate"), [(0, 1), (-1, 1), (1, 0), (1, -2), (1, math.nan)])
def test_plans_that_cannot_be(n: int, rate: float) -> None:
    with pytest.raises(ConfigError):
        plan_requests(LENGTHS, n_requests=n, rate_per_s=rate, seed=0)


def test_trace_of_lengths(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    file.write_text("[[3, 4], [5, 6]]")
    planned = LoadOptions(url="http://x", trace=file, n_requests=5).plan()
    assert [(one.n_prompt, one.n_output) for one in planned] == [(3, 4), (5, 6)] * 2 + [(3, 4)]
    assert len(LoadOptions(url="http://x", trace=file).plan()) == 2


def test_trace_with_arrivals(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    file.write_text("[[3, 4, 10.5], [5, 6, 10], [7, 8, 12]]")
    planned = LoadOptions(url="http://x", trace=file).plan()
    assert [(one.n_prompt, one.arrival_s) for one in planned] == [(5, 0), (3, 0.5), (7, 2)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[", "is not JSON"),
        ("[]", "not a list of requests"),
        ("{}", "not a list of requests"),
        ("[[1, 2], [3]]", r"request 1: \[3\]"),
        ("[[1, 0]]", "request 0"),
        ("[[1, true]]", "request 0"),
        ("[[1, 2.5]]", "request 0"),
        ("[[1, 2, -1]]", "arrival -1"),
        ("[[1, 2, NaN]]", "arrival nan"),
        ("[[1, 2, 3], [1, 2]]", "only 1 of 2"),
    ],
)
def test_bad_traces(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "trace.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read_trace(file)


def test_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "none.json")


def test_prompts() -> None:
    one, other = (Planned(number=i, arrival_s=0, n_prompt=50, n_output=1) for i in (0, 1))
    ids = prompt_ids(one, seed=1, first=10, stop=20)
    assert len(ids) == 50
    assert set(ids) <= set(range(10, 20))
    assert ids == prompt_ids(one, seed=1, first=10, stop=20)
    assert ids != prompt_ids(other, seed=1, first=10, stop=20)
    assert len(prompt_text(one, seed=1).split()) == 50
    assert prompt_text(one, seed=1) != prompt_text(other, seed=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost:8000"},
        {"prompts": "words"},
        {"chat": True},
        {"prompt_tokens": 0},
        {"output_tokens": -1},
        {"first_id": 5, "stop_id": 5},
        {"limit_s": 0},
        {"limit_s": math.nan},
    ],
)
def test_options_that_cannot_work(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LoadOptions(**{"url": "http://x", **wrong})


async def test_ids(loop_kind):
    engine = FakeEngine(step_s=0.002)
    report = await run(engine, rate_per_s=200, n_requests=40, prompt_tokens=9, output_tokens=12)
    assert report.errors == {}
    assert report.options.model == "fake/model"
    for outcome in report.outcomes:
        assert (outcome.n_prompt, outcome.n_generated) == (9, 12)
        assert 0 < outcome.first_token_s < outcome.total_s
        assert outcome.per_token_s > 0.001
        assert outcome.normalised_s == outcome.total_s / 12
    assert len({tuple(options.items()) for options in map(_wish, engine.options.values())}) == 1


def _wish(options: dict[str, object]) -> dict[str, object]:
    names = ("max_tokens", "temperature", "ignore_eos")
    return {name: options[name] for name in names}


@pytest.mark.parametrize("chat", [False, True])
async def test_text(chat):
    report = await run(
        FakeEngine(),
        rate_per_s=math.inf,
        n_requests=5,
        prompts="text",
        chat=chat,
        prompt_tokens=20,
        output_tokens=6,
    )
    assert report.errors == {}
    assert [outcome.n_generated for outcome in report.outcomes] == [6] * 5
    assert all(outcome.n_prompt > 20 for outcome in report.outcomes)


async def test_open_loop():
    """Requests are sent when due although none is answered, and waiting counts."""
    engine = FakeEngine(rows=1)
    engine.go.clear()
    async with Server(engine, port=0) as server:
        options = LoadOptions(url=server.url, rate_per_s=500, n_requests=30, output_tokens=4)
        task = asyncio.create_task(run_load(options))
        await engine.wait_open(30)
        await asyncio.sleep(0.2)
        engine.go.set()
        report = await task
    assert report.errors == {}
    assert min(outcome.first_token_s for outcome in report.outcomes) > 0.2


async def test_errors_by_kind():
    engine = FakeEngine(rows=2, queue=3)
    engine.go.clear()
    async with Server(engine, port=0) as server:
        options = LoadOptions(url=server.url, rate_per_s=math.inf, n_requests=9, output_tokens=4)
        task = asyncio.create_task(run_load(options))
        await engine.wait_open(5)
        await asyncio.sleep(0.05)
        engine.go.set()
        report = await task
    assert report.errors == {"http_429": 4}
    assert len(report.answered) == 5


async def test_failure_within_a_stream():
    engine = FakeEngine()
    engine.failure, engine.fail_after = StageFailed("w", "killed"), 3
    report = await run(engine, rate_per_s=math.inf, n_requests=3, output_tokens=20)
    assert report.errors == {"stream_error": 3}


async def test_timeout_and_cancelling():
    engine = FakeEngine()
    engine.go.clear()
    report = await run(engine, rate_per_s=math.inf, n_requests=3, output_tokens=4, limit_s=0.1)
    assert report.errors == {"timeout": 3}
    await engine.wait_open(0)
    async with Server(engine, port=0) as server:
        options = LoadOptions(url=server.url, rate_per_s=math.inf, n_requests=3, output_tokens=4)
        task = asyncio.create_task(run_load(options))
        await engine.wait_open(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.wait_open(0)


async def test_api_key():
    async with Server(FakeEngine(), port=0, api_key="k") as server:
        options = LoadOptions(url=f"{server.url}/v1/", n_requests=2, rate_per_s=math.inf)
        with pytest.raises(ConfigError, match="401"):
            await run_load(options)
        given = LoadOptions(
            url=server.url, n_requests=2, rate_per_s=math.inf, output_tokens=3, api_key="k"
        )
        report = await run_load(given)
    assert report.errors == {}
    assert "api_key" not in json.dumps(report.summary()).replace('"api_key": null', "")


async def test_nobody_there(unused_port: int) -> None:
    with pytest.raises(ConfigError, match="does not list its models"):
        await run_load(LoadOptions(url=f"http://127.0.0.1:{unused_port}"))
    options = LoadOptions(
        url=f"http://127.0.0.1:{unused_port}", model="m", n_requests=2, rate_per_s=math.inf
    )
    assert (await run_load(options)).errors == {"connect": 2}


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def saying(raw: bytes) -> AsyncIterator[str]:
    """A server that answers everything with ``raw`` and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
TOKEN = b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (OK + TOKEN, "cut_off"),
        (OK + b"data: [DONE]\n\n", "empty"),
        (OK + b"data: {nonsense\n\n", "bad_answer"),
        (OK + b"data: [1]\n\n", "bad_answer"),
        (OK + b'data: {"error": {"message": "x"}}\n\n', "stream_error"),
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", "http_500"),
        (b"", "cut_off"),
        (b"rubbish\r\n\r\n", "cut_off"),
    ],
)
async def test_servers_that_misbehave(raw, kind):
    async with saying(raw) as url:
        options = LoadOptions(url=url, model="m", n_requests=2, rate_per_s=math.inf)
        report = await run_load(options)
    assert report.errors == {kind: 2}


async def test_a_server_that_counts_nothing():
    raw = OK + b": comment\r\n\r\n" + TOKEN * 3 + b"data:[DONE]\n\n"
    async with saying(raw) as url:
        options = LoadOptions(
            url=url, model="m", n_requests=1, prompt_tokens=7, rate_per_s=math.inf
        )
        outcome = (await run_load(options)).outcomes[0]
    assert (outcome.error, outcome.n_prompt, outcome.n_generated) == (None, 7, 3)


@pytest.mark.parametrize("raw", [OK + b"hello", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"])
async def test_no_openai_server(raw):
    async with saying(raw) as url:
        with pytest.raises(ConfigError, match="no OpenAI-compatible server"):
            await run_load(LoadOptions(url=url))


async def test_events_in_any_pieces():
    raw = b'data: {"a": "\\u2028 \xc2\x85"}\r\n\r\nevent: x\ndata:2\n\ndata: unfinished'
    chance = random.Random(2)

    async def pieces() -> AsyncIterator[bytes]:
        rest = raw
        while rest:
            size = chance.randrange(1, 6)
            yield rest[:size]
            rest = rest[size:]

    assert [data async for data in sse_data(pieces())] == [b'{"a": "\\u2028 \xc2\x85"}', b"2"]


def outcome(number: int, **values: object) -> Outcome:
    planned = Planned(number=number, arrival_s=0, n_prompt=1, n_output=1)
    return Outcome(planned=planned, late_s=0.001 * number, **values)


def test_report() -> None:
    outcomes = [
        outcome(i, first_token_s=float(i), total_s=i + 10.0, n_generated=11, n_prompt=2)
        for i in range(101)
    ]
    outcomes.append(outcome(101, first_token_s=999.0, error="timeout"))
    report = LoadReport(options=LoadOptions(url="http://x"), outcomes=outcomes, duration_s=50)
    first = report.distribution("first_token_s")
    assert first == {"p50": 50, "p95": 95, "p99": 99, "mean": 50, "max": 100}
    assert report.distribution("per_token_s")["p99"] == 1
    assert report.distribution("normalised_s")["p50"] == pytest.approx(60 / 11)
    made = json.loads(json.dumps(make_report("load", report.measured()), allow_nan=False))
    results = made["results"]
    assert results["errors"] == {"timeout": 1}
    assert results["output_tokens_per_s"] == 101 * 11 / 50
    assert results["latest_send_s"] == pytest.approx(0.101)
    assert len(results["each"]) == 102
    console = Console(file=io.StringIO(), width=120)
    console.print(report.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "101 of 102 requests answered" in text
    assert "95000.00" in text
    assert "1 timeout" in text


def test_report_of_failures_only() -> None:
    outcomes = [outcome(0, error="connect")]
    report = LoadReport(
        options=LoadOptions(url="http://x", rate_per_s=math.inf), outcomes=outcomes, duration_s=1
    )
    made = json.loads(json.dumps(make_report("load", report.measured()), allow_nan=False))
    assert made["results"]["first_token_s"]["p50"] is None
    assert made["results"]["options"]["rate_per_s"] == "inf"
    Console(file=io.StringIO()).print(report.table())
