"""The controller is killed and started again: requests go on, no token is lost or said twice.

In virtual time a copy of the journal, taken at any moment, is what a killed controller leaves.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.errors import ConfigError, RequestRejected
from dvrt.models.tiny import write_tiny
from dvrt.requests import FinishReason
from dvrt.virtual import run_virtual
from tests.runtime.crowd import BRISK, at_rest

Text = list[tuple[int, int, FinishReason | None]]
"""Of one request: (sample, token id, end), sample after sample."""

SHAPES = [{"stages": 2}, {"prompt_stages": 1, "token_stages": 2}]

OTHERS = {
    "n": 5,
    "max_tokens": 55,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "repetition_penalty": 1.1,
    "seed": 77,
    "logprobs": 0,
    "stop_ids": (1,),
}
"""What none of the wishes asks for."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("restart") / "tiny", "gpt2", n_layers=3)


def wishes() -> dict[str, dict[str, Any]]:
    rng = random.Random(1)
    return {
        f"r{i}": {
            "prompt": [rng.randrange(100) for _ in range(rng.randint(1, 70))],
            "max_tokens": rng.randint(1, 50),
            "temperature": rng.choice((0.0, 0.9)),
            "repetition_penalty": rng.choice((1.0, 1.3)),
            "seed": i,
            "n": rng.choice((1, 1, 3)),
            "ignore_eos": True,
        }
        for i in range(14)
    }


class Client:
    """Reads one request, here or in another life, and keeps what it has seen."""

    def __init__(self, name: str, wish: dict[str, Any]) -> None:
        self.name, self.wish = name, wish
        self.seen: dict[int, list[tuple[int, FinishReason | None]]] = {}

    async def ask(self, engine: Engine) -> None:
        await self.read(engine.generate(**self.wish, request_id=self.name, lingers=True))

    async def resume(self, engine: Engine) -> None:
        """Whatever of it is known; a request that never got into the journal is asked again."""
        if await engine.knows(self.name):
            former, self.seen = self.seen, {}
            await self.read(engine.resume(self.name))
            for sample, tokens in former.items():
                assert self.seen[sample][: len(tokens)] == tokens, "what was seen was unsaid"
        else:
            assert not self.seen
            await self.ask(engine)

    async def read(self, tokens: Any) -> None:
        async for token in tokens:
            said = self.seen.setdefault(token.sample, [])
            if token.id >= 0:
                assert token.index == len(said)
            said.append((token.id, token.finish_reason))

    @property
    def text(self) -> Text:
        return [(n, *each) for n, said in sorted(self.seen.items()) for each in said]


def live(model: Path, work: Callable[[Engine], Awaitable[None]], seed: int, **options: Any) -> None:
    async def main() -> None:
        chosen = {**BRISK, "device": "null", "in_process": True, **options}
        async with dvrt.launch(model, **chosen) as engine:
            await work(engine)

    run_virtual(main(), seed=seed)


def copy_journal(source: Path, target: Path) -> None:
    for suffix in ("", "-wal"):
        if source.with_name(source.name + suffix).exists():
            shutil.copy(source.with_name(source.name + suffix), str(target) + suffix)


@pytest.fixture(scope="module")
def right(model: Path) -> dict[str, Text]:
    clients = [Client(*item) for item in wishes().items()]

    async def work(engine: Engine) -> None:
        await asyncio.gather(*(client.ask(engine) for client in clients))

    live(model, work, 0, stages=1)
    return {client.name: client.text for client in clients}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_whenever_it_is_killed_every_text_is_whole(
    model: Path, right: dict[str, Text], tmp_path: Path, shape: dict[str, Any], seed: int
) -> None:
    """Killed again and again, each life as long as the seed has it."""
    rng = random.Random(seed)
    clients = [Client(*item) for item in wishes().items()]
    journal = tmp_path / "life-0.db"
    for life in range(1, 5):
        following = tmp_path / f"life-{life}.db"
        seen: dict[str, Any] = {}

        async def work(engine: Engine) -> None:
            task = asyncio.gather(*(client.resume(engine) for client in clients))
            await asyncio.wait([task], timeout=rng.uniform(0.05, 1.5))
            copy_journal(journal, following)  # noqa: B023
            seen.update({c.name: {n: list(t) for n, t in c.seen.items()} for c in clients})  # noqa: B023
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        live(model, work, seed, **shape, journal=str(journal))
        for client in clients:
            client.seen = seen[client.name]
        journal = following

    async def last(engine: Engine) -> None:
        await asyncio.gather(*(client.resume(engine) for client in clients))
        await at_rest(engine)

    live(model, last, seed, **shape, journal=str(journal))
    assert {client.name: client.text for client in clients} == right


def test_an_answer_is_given_again_as_often_as_it_is_asked_for(
    model: Path, right: dict[str, Text], tmp_path: Path
) -> None:
    name, wish = next(iter(wishes().items()))

    async def first(engine: Engine) -> None:
        reader, late = Client(name, wish), Client(name, wish)
        task = asyncio.create_task(reader.ask(engine))
        await asyncio.sleep(0.3)
        await late.resume(engine)
        await task
        assert reader.text == late.text == right[name]
        late.seen.clear()
        await late.resume(engine)
        assert late.text == right[name]

    async def second(engine: Engine) -> None:
        reader = Client(name, wish)
        await reader.resume(engine)
        assert reader.text == right[name]
        half = [t async for t in engine.resume(name, from_index=4) if t.sample == 0]
        assert half[0].index == 4
        with pytest.raises(RequestRejected, match="not known here") as caught:
            await anext(engine.resume("nobody"))
        assert caught.value.code == "unknown_request"
        with pytest.raises(RequestRejected, match="another prompt"):
            await anext(engine.resume(name, prompt_ids=[1, 2, 3]))
        options = {key: value for key, value in wish.items() if key != "prompt"}
        unseeded = {key: value for key, value in options.items() if key != "seed"}
        for same in (options, unseeded, {**options, "deadline_s": 60.0}):
            await anext(engine.resume(name, prompt_ids=wish["prompt"], options=same))
        for key, value in OTHERS.items():
            with pytest.raises(RequestRejected, match=f"another {key}: ") as caught:
                await anext(engine.resume(name, options={**options, key: value}))
            assert (caught.value.code, caught.value.param) == ("idempotency_mismatch", key)

    journal = str(tmp_path / "journal.db")
    live(model, first, 1, stages=2, journal=journal)
    live(model, second, 1, stages=2, journal=journal)


def test_a_request_lingers_for_its_client_and_not_for_ever(model: Path, tmp_path: Path) -> None:
    options = {"prompt": [1, 2], "max_tokens": 120, "ignore_eos": True, "temperature": 0.0}

    async def work(engine: Engine) -> None:
        for name, lingers in (("back", True), ("gone", True), ("plain", False)):
            stream = engine.generate(**options, request_id=name, lingers=lingers)
            await anext(stream)
            await stream.aclose()
        await asyncio.sleep(0.01)
        assert engine.status().n_running == 2
        stream = engine.resume("back")
        await anext(stream)
        await asyncio.sleep(0.6)
        assert engine.status().n_running == 1
        assert len([token async for token in stream]) == 119
        gone = [token async for token in engine.resume("gone")]
        assert gone[-1].finish_reason is FinishReason.CANCELLED
        await at_rest(engine)

    live(model, work, 0, stages=1, journal=str(tmp_path / "j.db"), reattach=0.5)


def test_requests_of_an_earlier_life_that_nobody_wants_end(model: Path, tmp_path: Path) -> None:
    journal, left = tmp_path / "a.db", tmp_path / "b.db"
    client = Client("r", {"prompt": [3], "max_tokens": 120, "ignore_eos": True})

    async def first(engine: Engine) -> None:
        task = asyncio.create_task(client.ask(engine))
        await asyncio.sleep(0.3)
        copy_journal(journal, left)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def second(engine: Engine) -> None:
        assert any(record.state == "resuming" for record in engine.events())
        assert engine.status().n_running == 1
        await asyncio.sleep(1.0)
        assert engine.status().n_running == 0
        await at_rest(engine)

    live(model, first, 0, stages=1, journal=str(journal))
    live(model, second, 0, stages=1, journal=str(left), reattach=0.5)


def test_a_journal_that_cannot_be_used_prevents_the_launch(model: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    journal.write_bytes(b"\0" * 5000)

    async def main() -> None:
        async with dvrt.launch(model, device="null", in_process=True, journal=str(journal)):
            pass

    with pytest.raises(ConfigError, match=r"journal\.db"):
        run_virtual(main())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_with_files_only_what_was_not_yet_written_is_computed_again(
    model: Path, right: dict[str, Text], tmp_path: Path, shape: dict[str, Any], seed: int
) -> None:
    clients = [Client(*item) for item in wishes().items()]
    left, following = tmp_path / "left", tmp_path / "following"

    async def first(engine: Engine) -> None:
        task = asyncio.gather(*(client.ask(engine) for client in clients))
        await asyncio.wait([task], timeout=random.Random(seed).uniform(0.2, 1.5))
        shutil.copytree(left, following)
        for client in clients:
            client.seen = {n: list(said) for n, said in client.seen.items()}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def second(engine: Engine) -> None:
        await asyncio.gather(*(client.resume(engine) for client in clients))
        await at_rest(engine)
        numbers = engine._controller._dispatcher.statistics()
        assert numbers.restored_tokens > 0
        assert numbers.recomputed_tokens <= numbers.restored_tokens / 5, numbers

    live(model, first, seed, **shape, persist=str(left))
    live(model, second, seed, **shape, persist=str(following))
    assert {client.name: client.text for client in clients} == right
