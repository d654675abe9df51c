"""The whole cluster in one process under virtual time: an hour in seconds, one run for one seed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.kv.copied import PAUSE_S
from dvrt.models.tiny import write_tiny
from dvrt.virtual import run_virtual

Outcome = tuple[dict[str, tuple[tuple[int, ...], str]], tuple[Any, ...], float]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("virtual") / "tiny", "gpt2", n_layers=4)


async def serve(model: Path, n: int, hours: float, n_stages: int) -> Outcome:
    """Poisson-like arrivals over the hours; some clients leave, some have deadlines."""
    loop = asyncio.get_running_loop()
    options = {"device": "null", "null_step_ms": 30.0, "heartbeat_s": 1.0, "lease_s": 30.0}
    launch = dvrt.launch(model, stages=n_stages, in_process=True, max_context=128, **options)
    async with launch as engine:

        async def client(i: int) -> tuple[str, tuple[tuple[int, ...], str]]:
            rng = random.Random(i)
            at_s, leaves_at = rng.random() * hours * 3600, rng.choice((None, None, 3))
            wish: dict[str, Any] = {
                "max_tokens": rng.randint(1, 40),
                "temperature": rng.choice((0.0, 0.8)),
                "seed": i,
                "deadline_s": rng.choice((None, 20.0)),
                "request_id": f"r{i}",
            }
            prompt = [rng.randrange(300) for _ in range(rng.randint(1, 80))]
            await asyncio.sleep(at_s)
            ids, why = [], "left"
            stream = engine.generate(prompt, **wish)
            async for token in stream:
                ids.append(token.id)
                if token.finish_reason is not None:
                    why = token.finish_reason.value
                elif leaves_at is not None and len(ids) == leaves_at:
                    break
            await stream.aclose()
            return wish["request_id"], (tuple(ids), why)

        outcome = dict(await asyncio.gather(*(client(i) for i in range(n))))
        status = engine.status()
        assert (status.n_running, status.n_queued) == (0, 0)
        return outcome, engine.events(), loop.time()


def test_an_hour_of_serving_is_the_same_for_the_same_seed(model: Path) -> None:
    once = run_virtual(serve(model, 150, 1.0, 3), seed=11)
    again = run_virtual(serve(model, 150, 1.0, 3), seed=11)
    assert once == again
    assert once[2] > 3000
    assert {why for _, why in once[0].values()} >= {"length", "left"}


def test_another_order_of_events_gives_the_same_tokens(model: Path) -> None:
    runs = [
        run_virtual(serve(model, 60, 0.005, n), seed=seed)
        for seed, n in ((1, 3), (2, 3), (3, 3), (4, 4))
    ]
    for other in runs[1:]:
        for name, (ids, _) in runs[0][0].items():
            theirs = other[0][name][0]
            shorter = min(len(ids), len(theirs))
            assert ids[:shorter] == theirs[:shorter]
    assert len({run[1] for run in runs[:3]}) > 1, "three seeds, one order of events"


async def watch_lags(model: Path, replicas: int) -> tuple[list[set[int | None]], list[int | None]]:
    """What the status says of copies after each token, and when all is quiet again."""
    seen: list[set[int | None]] = []
    options = {"device": "null", "null_step_ms": 5.0, "replicas": replicas}
    async with dvrt.launch(model, stages=2, in_process=True, **options) as engine:
        async for _ in engine.generate([1], max_tokens=60, temperature=0.0, ignore_eos=True):
            seen.append({each.replica_lag for each in engine.status().workers})
        await asyncio.sleep(1.0)
        return seen, [each.replica_lag for each in engine.status().workers]


def test_the_status_says_what_copies_lack_in_that_moment(model: Path) -> None:
    seen, at_last = run_virtual(watch_lags(model, 1))
    lags = [lag for each in seen for lag in each if lag is not None]
    assert max(lags) > 0, "copies are behind the compute"
    assert max(lags) <= 1 + 2 * PAUSE_S / 0.010
    assert at_last == [0, 0]
    assert {lag for each in run_virtual(watch_lags(model, 0))[0] for lag in each} == {None}
