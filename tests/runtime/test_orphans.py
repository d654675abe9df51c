"""A killed ``launch`` leaves its workers; the next one takes them in, weights, logs and all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dvrt.models.tiny import write_tiny
from tests.runtime.test_controller_killed import N_TOKENS, NULL, Launch, Reader, launched

N_READERS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("orphans") / "tiny", "gpt2", n_layers=4)


class Mixed(Reader):
    """Every other one is greedy, the rest are seeded."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._body["temperature"] = 0.8 if number % 2 else 0.0


class Story:
    """A launch under load, and what happens to it once its clients have enough tokens."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.readers = [Mixed(number) for number in range(N_READERS)]

    async def run(self, *acts: Callable[[], None]) -> None:
        """The acts, each of which leaves the controller running, spread over the answers."""
        async with httpx.AsyncClient(base_url=self.launch.url, timeout=30) as client:
            tasks = asyncio.gather(*(reader.read(client) for reader in self.readers))
            for place, act in enumerate(acts, start=1):
                enough = place / (len(acts) + 1) * N_READERS * N_TOKENS
                while sum(len(reader.ids) for reader in self.readers) < enough:
                    await asyncio.wait([tasks], timeout=0.02)
                await asyncio.to_thread(act)
            async with asyncio.timeout(50):
                await tasks

    def kill_and_start(self) -> None:
        self.launch.kill(with_family=False)
        self.launch.start()

    @property
    def texts(self) -> list[list[int]]:
        return [reader.ids for reader in self.readers]

    def workers(self) -> dict[str, int]:
        """The pids of the workers that live, by name."""
        status: dict[str, Any] = httpx.get(f"{self.launch.url}/status", timeout=20).json()
        living = [each for each in status["workers"] if each["state"] not in ("lost", "ended")]
        return {each["name"]: each["pid"] for each in living}

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.launch.url}/metrics", timeout=20).text.splitlines()
        (value,) = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
        return float(value)


def grace(tmp_path: Path, grace_s: float = 30.0) -> tuple[str, ...]:
    return ("--journal", str(tmp_path / "journal.db"), "--orphan-grace", str(grace_s))


def ensure_gone(pids: set[int], limit_s: float) -> None:
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=limit_s)
    assert not alive, alive


@pytest.fixture(scope="module")
def right(model: Path) -> list[list[int]]:
    """The answers when nothing happens."""
    with launched(model, *NULL) as launch:
        story = Story(launch)
        asyncio.run(story.run())
    assert [len(text) for text in story.texts] == [N_TOKENS] * N_READERS
    return story.texts


def test_the_same_workers_go_on_where_they_were_each_time(
    model: Path, right: list[list[int]], tmp_path: Path
) -> None:
    with launched(model, *NULL, *grace(tmp_path)) as launch:
        story = Story(launch)
        seen: list[dict[str, int]] = []

        def act() -> None:
            seen.append(story.workers())
            story.kill_and_start()

        asyncio.run(story.run(act, act))
        seen.append(story.workers())
        recomputed = story.metric("dvrt_recomputed_tokens")
    assert story.texts == right
    assert len(seen[0]) == 2
    assert seen[0] == seen[1] == seen[2]
    assert recomputed == 0


def test_where_one_of_them_has_died_its_logs_come_from_copies(
    model: Path, right: list[list[int]], tmp_path: Path
) -> None:
    with launched(model, *NULL, *grace(tmp_path)) as launch:
        story = Story(launch)
        before: dict[str, int] = {}

        def act() -> None:
            before.update(story.workers())
            launch.kill(with_family=False)
            os.kill(before["worker-0"], signal.SIGKILL)
            launch.start()

        asyncio.run(story.run(act))
        after = story.workers()
        restored = story.metric("dvrt_restored_tokens")
        recomputed = story.metric("dvrt_recomputed_tokens")
    assert story.texts == right
    assert after["worker-1"] == before["worker-1"]
    assert after["worker-0.2"] != before["worker-0"]
    assert recomputed <= restored / 5, (recomputed, restored)


@pytest.mark.parametrize("other", [("--stages", "3"), ("--orphan-grace", "0")], ids=str)
def test_those_who_do_not_fit_end_and_others_start(
    model: Path, right: list[list[int]], tmp_path: Path, other: tuple[str, ...]
) -> None:
    with launched(model, *NULL, *grace(tmp_path)) as launch:
        story = Story(launch)
        before: dict[str, int] = {}

        def act() -> None:
            before.update(story.workers())
            launch.kill(with_family=False)
            launch.give(*other)
            launch.start()

        asyncio.run(story.run(act))
        after = story.workers()
        ensure_gone(set(before.values()), 5)
    assert story.texts == right
    assert not set(after) & set(before)


def test_orphans_that_nobody_claims_end_and_leave_nothing(model: Path, tmp_path: Path) -> None:
    with launched(model, *NULL, *grace(tmp_path, 2.0)) as launch:
        story = Story(launch)
        before: dict[str, int] = {}

        def act() -> None:
            before.update(story.workers())
            launch.kill(with_family=False)
            ensure_alive(before)
            ensure_gone(launch.family, 15)
            launch.start()

        asyncio.run(story.run(act))
        assert not set(story.workers().values()) & set(before.values())
    assert [len(text) for text in story.texts] == [N_TOKENS] * N_READERS


def ensure_alive(workers: dict[str, int]) -> None:
    assert all(psutil.Process(pid).is_running() for pid in workers.values())


def test_an_orphan_that_is_stopped_is_not_waited_for_in_vain(
    model: Path, right: list[list[int]], tmp_path: Path
) -> None:
    with launched(model, *NULL, *grace(tmp_path)) as launch:
        story = Story(launch)
        before: dict[str, int] = {}

        def act() -> None:
            before.update(story.workers())
            os.kill(before["worker-1"], signal.SIGSTOP)
            launch.kill(with_family=False)
            launch.start()

        asyncio.run(story.run(act))
        ensure_gone({before["worker-1"]}, 15)
        assert story.workers()["worker-0"] == before["worker-0"]
    assert story.texts == right


@pytest.mark.parametrize(
    "shape",
    [
        ("--device", "null", "--null-step-ms", "8", "--prompt-stages", "1", "--token-stages", "2"),
        ("--device", "cpu", "--stages", "2"),
        ("--device", "cpu", "--stages", "2", "--swap", "--swap-anyway"),
    ],
    ids=["split", "cpu", "swap"],
)
@pytest.mark.slow
def test_other_shapes_go_on_as_well(model: Path, tmp_path: Path, shape: tuple[str, ...]) -> None:
    with launched(model, *shape) as launch:
        undisturbed = Story(launch)
        asyncio.run(undisturbed.run())
    with launched(model, *shape, *grace(tmp_path)) as launch:
        story = Story(launch)
        seen: list[dict[str, int]] = []

        def act() -> None:
            seen.append(story.workers())
            story.kill_and_start()

        asyncio.run(story.run(act))
        seen.append(story.workers())
    assert story.texts == undisturbed.texts
    assert seen[0] == seen[1]
