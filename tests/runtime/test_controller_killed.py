"""A real ``launch`` is killed under load and started again; its HTTP clients come back.

Every client gets its whole text exactly once, whatever was killed and how often.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dvrt.cli.signals import descendants
from dvrt.models.tiny import write_tiny

HOUSE = Path(__file__).parents[2]
N_TOKENS = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("killed") / "tiny", "gpt2", n_layers=4)


class Launch:
    """A ``python -m dvrt launch`` that can be killed and started again at the same port."""

    def __init__(self, model: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(sys.executable, "-m", "dvrt", "launch", str(model), "--port", str(self.port)),
            *("--max-context", "256", "--lease-s", "2", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.family: set[int] = set()

    def give(self, *options: str) -> None:
        """Later starts have these as well; the last of two equal ones counts."""
        self._command += options

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, cwd=HOUSE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self, *, with_family: bool) -> None:
        assert self._process is not None
        family = descendants(self._process.pid)
        self.family |= {self._process.pid, *family}
        for pid in (self._process.pid, *(family if with_family else ())):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.family |= {self._process.pid, *descendants(self._process.pid)}
            self._process.terminate()
            self._process.wait(30)

    def ensure_gone(self) -> None:
        """Nobody of any life outlives the last one."""
        processes = [psutil.Process(pid) for pid in self.family if psutil.pid_exists(pid)]
        _, alive = psutil.wait_procs(processes, timeout=15)
        assert not alive, alive


@contextlib.contextmanager
def launched(model: Path, *options: str) -> Iterator[Launch]:
    launch = Launch(model, *options)
    launch.start()
    try:
        yield launch
    finally:
        launch.stop()
        launch.ensure_gone()


class Reader:
    """One streaming client, which comes back as often as it must, with the place that it has."""

    def __init__(self, number: int) -> None:
        self.ids: list[int] = []
        self.n_calls = 0
        self._place = ""
        self._headers = {"Idempotency-Key": f"client-{number}"}
        self._body: dict[str, Any] = {
            "prompt": [number % 50 + 1] * (number + 1),
            "max_tokens": N_TOKENS,
            "temperature": 0.8,
            "seed": number,
            "stream": True,
            "return_token_ids": True,
            "ignore_eos": True,
        }

    async def read(self, client: httpx.AsyncClient) -> None:
        while not await self._call(client):
            await asyncio.sleep(0.1)

    async def _call(self, client: httpx.AsyncClient) -> bool:
        """Whether the answer came to its end."""
        self.n_calls += 1
        try:
            async with client.stream(
                "POST", "/v1/completions", json=self._body, headers=self._headers
            ) as reply:
                if reply.status_code == 503:
                    return False
                assert reply.status_code == 200, await reply.aread()
                async for line in reply.aiter_lines():
                    if line == "data: [DONE]":
                        return True
                    self._take(line)
        except httpx.TransportError:
            pass
        return False

    def _take(self, line: str) -> None:
        """An event counts when its data is here, as for a browser."""
        if line.startswith("id: "):
            self._place = line.removeprefix("id: ")
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                self.ids += choice["token_ids"]
            if self._place:
                self._headers["Last-Event-ID"] = self._place


async def serve_all(launch: Launch, n: int, *, kills: list[tuple[float, bool]]) -> list[Reader]:
    readers = [Reader(number) for number in range(n)]
    async with httpx.AsyncClient(base_url=launch.url, timeout=30) as client:
        tasks = asyncio.gather(*(reader.read(client) for reader in readers))
        for share, with_family in kills:
            while sum(len(reader.ids) for reader in readers) < share * n * N_TOKENS:
                await asyncio.wait([tasks], timeout=0.02)
            await asyncio.to_thread(launch.kill, with_family=with_family)
            await asyncio.to_thread(launch.start)
        async with asyncio.timeout(50):
            await tasks
    return readers


@pytest.fixture(scope="module")
def right(model: Path) -> list[list[int]]:
    """The answers when nothing happens."""
    with launched(model, *NULL) as launch:
        readers = asyncio.run(serve_all(launch, 6, kills=[]))
    assert [reader.n_calls >= 1 and len(reader.ids) for reader in readers] == [N_TOKENS] * 6
    return [reader.ids for reader in readers]


NULL = ("--device", "null", "--null-step-ms", "8", "--stages", "2")


def test_every_client_gets_its_text_once_when_the_controller_is_killed(
    model: Path, right: list[list[int]], tmp_path: Path
) -> None:
    with launched(model, *NULL, "--journal", str(tmp_path / "journal.db")) as launch:
        readers = asyncio.run(serve_all(launch, 6, kills=[(0.4, False)]))
    assert [reader.ids for reader in readers] == right
    assert max(reader.n_calls for reader in readers) > 1


def test_every_client_gets_its_text_once_when_everything_is_killed(
    model: Path, right: list[list[int]], tmp_path: Path
) -> None:
    """Every process at once; the logs come back from the files."""
    with launched(model, *NULL, "--persist", str(tmp_path / "kept")) as launch:
        readers = asyncio.run(serve_all(launch, 6, kills=[(0.5, True)]))
        metrics = httpx.get(f"{launch.url}/metrics").text
    assert [reader.ids for reader in readers] == right
    assert max(reader.n_calls for reader in readers) > 1
    values = dict(line.split() for line in metrics.splitlines() if line.startswith("dvrt_re"))
    assert float(values["dvrt_restored_tokens"]) > float(values["dvrt_recomputed_tokens"])


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("options", ["journal", "persist", "split"])
def test_killed_again_and_again(
    model: Path, right: list[list[int]], tmp_path: Path, options: str
) -> None:
    given = {
        "journal": ("--journal", str(tmp_path / "journal.db")),
        "persist": ("--persist", str(tmp_path / "kept")),
        "split": ("--persist", str(tmp_path / "kept")),
    }
    shape = ("--device", "null", "--null-step-ms", "8")
    shape += (
        ("--prompt-stages", "1", "--token-stages", "2") if options == "split" else ("--stages", "2")
    )
    with launched(model, *shape, *given[options]) as launch:
        kills = [(0.1, True), (0.3, False), (0.5, True), (0.7, True)]
        readers = asyncio.run(serve_all(launch, 6, kills=kills))
    assert [reader.ids for reader in readers] == right


@pytest.mark.slow
def test_a_real_model_goes_on_as_well(model: Path, tmp_path: Path) -> None:
    cpu = ("--device", "cpu", "--stages", "2")
    with launched(model, *cpu) as launch:
        undisturbed = asyncio.run(serve_all(launch, 4, kills=[]))
    with launched(model, *cpu, "--persist", str(tmp_path / "kept")) as launch:
        readers = asyncio.run(serve_all(launch, 4, kills=[(0.4, True)]))
    assert [reader.ids for reader in readers] == [reader.ids for reader in undisturbed]
