"""``launch`` as a server: told to stop it drains, a lost pipeline ends it, everything is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import dvrt
from dvrt.cli import serving
from dvrt.config import LaunchOptions
from dvrt.errors import DvrtError, ModelError, StageFailed
from dvrt.results import Status, WorkerStatus

WORKER = WorkerStatus(
    name="stage-0", pid=4242, role="stage", stage=0, layers=(0, 4), state="ready", device="cpu"
)
OPTIONS = LaunchOptions.make(model="m", port=0, drain_limit_s=7)


class Bench:
    """A launch, an engine and a server that write down what is done to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.model = SimpleNamespace(name="m")
        self.report: Callable[[WorkerStatus], None] = lambda worker: None
        self.told = asyncio.Event()
        self.started = asyncio.Event()
        self.url = "http://127.0.0.1:1"
        self.failure: Exception | None = None
        self.over = asyncio.Event()
        self.end: DvrtError = StageFailed("stage-0", "it was killed; it was loss number 4")

    @contextlib.asynccontextmanager
    async def launch(
        self, *, model: str, on_progress: Callable[[WorkerStatus], None]
    ) -> AsyncIterator[Bench]:
        self.report = on_progress
        on_progress(WORKER)
        if self.failure:
            raise self.failure
        self.log.append(f"launch {model}")
        try:
            yield self
        finally:
            self.log.append("engine closed")

    def make_server(self, engine: object, *, host: str, port: int, api_key: str | None) -> Bench:
        assert engine is self
        return self

    def status(self) -> Status:
        return Status(
            model="m",
            state="serving",
            workers=(WORKER,),
            n_queued=0,
            n_running=2,
            n_rows=2,
            n_finished=0,
            uptime_s=0.0,
        )

    async def wait_over(self) -> DvrtError:
        await self.over.wait()
        return self.end

    async def start(self) -> None:
        self.log.append("listening")
        self.started.set()

    async def drain(self, limit_s: float) -> None:
        self.log.append(f"drain {limit_s:g}")

    async def aclose(self) -> None:
        self.log.append("server closed")

    @contextlib.contextmanager
    def instead(self) -> Iterator[asyncio.Event]:
        yield self.told

    def serve(self) -> asyncio.Task[int]:
        signals: Any = self
        return asyncio.create_task(serving.serve(OPTIONS, {"model": "m"}, signals))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setitem(vars(dvrt), "launch", made.launch)
    monkeypatch.setattr("dvrt.serve.server.Server", made.make_server)
    return made


async def test_told_to_stop_it_drains_and_closes(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    task = bench.serve()
    await bench.started.wait()
    bench.told.set()
    assert await task == 0
    assert bench.log == ["launch m", "listening", "drain 7", "server closed", "engine closed"]
    captured = capsys.readouterr()
    assert captured.out == "serving m at http://127.0.0.1:1\n"
    assert "ending 2 requests; a second signal stops at once" in captured.err
    assert "stage-0 (pid 4242): ready" in captured.err


async def test_a_pipeline_that_has_failed_ends_the_server(bench: Bench) -> None:
    task = bench.serve()
    await bench.started.wait()
    bench.report(replace(WORKER, state="lost"))
    bench.over.set()
    with pytest.raises(StageFailed, match="stage-0 failed: it was killed"):
        await task
    assert bench.log[2:] == ["drain 5", "server closed", "engine closed"]


async def test_a_loss_that_is_mended_ends_nothing(bench: Bench) -> None:
    task = bench.serve()
    await bench.started.wait()
    bench.report(replace(WORKER, state="lost"))
    await asyncio.sleep(0.01)
    assert not task.done()
    bench.told.set()
    assert await task == 0


async def test_a_launch_that_fails_never_listens(bench: Bench) -> None:
    bench.failure = ModelError("no such model")
    with pytest.raises(ModelError):
        await bench.serve()
    assert bench.log == []


async def test_cancelled_it_closes_everything(bench: Bench) -> None:
    task = bench.serve()
    await bench.started.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.log[-2:] == ["server closed", "engine closed"]
