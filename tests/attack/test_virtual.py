"""A whole cluster under virtual time: crowds, storms and odd shapes, exactly repeatable."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

import dvrt
from dvrt.cluster.engine import Engine
from dvrt.observe.events import Record
from dvrt.virtual import run_virtual
from tests.attack.traffic import Outcome, ask, wish

T = TypeVar("T")
CALM = {"heartbeat_s": 5.0, "lease_s": 60.0}
"""Heartbeats are most of what happens in an idle hour."""


def virtual(
    model: Path, work: Callable[[Engine], Awaitable[T]], *, seed: int = 0, **options: Any
) -> T:
    async def main() -> T:
        chosen = {"stages": 2, "max_context": 128, "null_step_ms": 20.0, **CALM, **options}
        async with dvrt.launch(model, device="null", in_process=True, **chosen) as engine:
            done = await work(engine)
            await settled(engine)
            return done

    return run_virtual(main(), seed=seed)


async def settled(engine: Engine) -> None:
    """All rows free at once: what ended does not linger."""
    await asyncio.sleep(1.0)
    status = engine.status()
    assert (status.n_running, status.n_queued) == (0, 0)
    engine._controller.check_integrity()


async def hour(engine: Engine) -> tuple[dict[int, Outcome], tuple[Record, ...]]:
    """Rushes and quiet times; every third client leaves, has a deadline, or comes back later."""

    async def client(number: int) -> Outcome:
        rng = random.Random(-1 - number)
        await asyncio.sleep(rng.randrange(12) * 300 + rng.random() * 4)
        leave_after = rng.choice((None, None, rng.randint(1, 9)))
        deadline_s = rng.choice((None, None, rng.uniform(0.001, 3.0)))
        done = await ask(engine, wish(number), leave_after=leave_after, deadline_s=deadline_s)
        if done.error == "Overloaded":
            await asyncio.sleep(30.0)
            done = await ask(engine, wish(number))
        return done

    outcomes = await asyncio.gather(*(client(number) for number in range(300)))
    return dict(enumerate(outcomes)), engine.events()


async def alone(engine: Engine) -> dict[int, Outcome]:
    return {number: await ask(engine, wish(number)) for number in range(300)}


def test_an_hour_of_rushes_repeats_itself_and_every_token_is_right(mute: Path) -> None:
    shape = {"stages": 3, "batch_size": 2, "max_queue": 10}
    outcomes, events = virtual(mute, hour, seed=5, **shape)
    assert (outcomes, events) == virtual(mute, hour, seed=5, **shape)
    assert events[-1].at_s - events[0].at_s > 3300
    other, _ = virtual(mute, hour, seed=6, **shape)
    right = virtual(mute, alone, stages=1, batch_size=1, microbatches=1)
    for number, whole in right.items():
        assert whole.is_whole
        for seen in (outcomes[number], other[number]):
            assert seen.fits(whole)
            assert seen == whole or not seen.is_whole
    reasons = {why for outcome in outcomes.values() for why in outcome.why}
    assert reasons >= {"length", "stop", "deadline", ""}
    assert sum(outcome.is_whole for outcome in outcomes.values()) > 100


SHAPES = [
    {"stages": 1, "microbatches": 1, "batch_size": 1},
    {"stages": 3, "microbatches": 3, "batch_size": 1},
    {"stages": 2, "microbatches": 40, "batch_size": 1},
    {"stages": 3, "microbatches": 4, "batch_size": 32},
    {"stages": 2, "batch_size": 3, "chunk_tokens": 1},
    {"stages": 2, "batch_size": 3, "chunk_tokens": 7},
    {"stages": 3, "batch_size": 4, "chunk_tokens": 10_000},
]


def test_no_shape_of_the_pipeline_changes_a_token(mute: Path) -> None:
    async def rush(engine: Engine) -> list[Outcome]:
        asked = (ask(engine, wish(number)) for number in range(25))
        return await asyncio.gather(*asked)

    first, *others = [virtual(mute, rush, seed=i, **shape) for i, shape in enumerate(SHAPES)]
    assert all(outcome.is_whole for outcome in first)
    assert all(other == first for other in others)


@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_prompts_around_multiples_of_the_chunk_and_contexts_to_the_last_token(
    mute: Path, chunk: int
) -> None:
    lengths = sorted(
        {n for k in (1, 2, 3) for n in (k * chunk - 1, k * chunk, k * chunk + 1)} - {0}
    )

    async def edges(engine: Engine) -> list[Outcome]:
        asked = [
            {"prompt": [n % 307] * n, "max_tokens": 200 - n, "temperature": 0.0, "n": 2}
            for n in [*lengths, 199]
        ]
        for one in asked:
            with pytest.raises(dvrt.RequestRejected, match="the context is 200 tokens"):
                await engine.complete(**{**one, "max_tokens": one["max_tokens"] + 1})
        return await asyncio.gather(*(ask(engine, one) for one in asked))

    shape = {"max_context": 200, "chunk_tokens": chunk}
    together = virtual(mute, edges, batch_size=4, **shape)
    assert [len(outcome.ids[0]) for outcome in together] == [200 - n for n in [*lengths, 199]]
    assert all(outcome.ids[0] == outcome.ids[1] for outcome in together)
    assert together == virtual(mute, edges, stages=1, microbatches=1, batch_size=1, **shape)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_hundred_and_twenty_eight_samples_of_one_prompt(mute: Path, batch_size: int) -> None:
    asked = {"prompt": [5] * 100, "max_tokens": 6, "temperature": 1.0, "seed": 9}

    async def many(engine: Engine) -> tuple[Outcome, Outcome]:
        return await ask(engine, {**asked, "n": 128}), await ask(engine, {**asked, "n": 1})

    crowd, single = virtual(mute, many, batch_size=batch_size)
    assert crowd.is_whole
    assert crowd.ids[0] == single.ids[0]
    assert len(set(crowd.ids)) > 120
    assert crowd == virtual(mute, many, batch_size=8, stages=3)[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_cancels_disturbs_nobody(mute: Path, seed: int) -> None:
    async def storm(engine: Engine) -> tuple[list[Outcome], list[Outcome]]:
        rng = random.Random(seed)

        async def torn(number: int) -> Outcome:
            """Cancelled at any moment: waiting, in its prompt, between tokens, after its end."""
            task = asyncio.create_task(ask(engine, wish(number)))
            await asyncio.sleep(rng.expovariate(2.0))
            task.cancel()
            return (await asyncio.gather(task, return_exceptions=True))[0]

        torn_ones = [torn(number) for number in range(100, 300)]
        kept_ones = [ask(engine, wish(number)) for number in range(20)]
        leavers = [ask(engine, wish(n), leave_after=rng.randint(1, 20)) for n in range(300, 400)]
        _, kept, left = await asyncio.gather(
            asyncio.gather(*torn_ones), asyncio.gather(*kept_ones), asyncio.gather(*leavers)
        )
        await settled(engine)
        again = [await ask(engine, wish(number)) for number in range(300, 400)]
        assert all(seen.fits(whole) for seen, whole in zip(left, again, strict=True))
        return kept, [await ask(engine, wish(number)) for number in range(20)]

    kept, right = virtual(mute, storm, seed=seed, batch_size=3)
    assert kept == right


def test_whoever_submits_while_it_drains_is_told_and_the_rest_end_whole(mute: Path) -> None:
    async def drain(engine: Engine) -> list[Outcome]:
        async def client(number: int) -> Outcome:
            await asyncio.sleep(number * 0.01)
            return await ask(engine, wish(number))

        clients = [asyncio.create_task(client(number)) for number in range(100)]
        await asyncio.sleep(0.5)
        await asyncio.gather(*(engine.drain(600.0) for _ in range(3)))
        return await asyncio.gather(*clients)

    outcomes = virtual(mute, drain, batch_size=2)
    refused = [outcome for outcome in outcomes if outcome.error]
    assert {outcome.error for outcome in refused} == {"Unavailable"}
    assert 40 < len(refused) < 60
    assert all(outcome.is_whole for outcome in outcomes if not outcome.error)


def test_an_id_may_be_used_again_once_its_request_has_ended(mute: Path) -> None:
    async def reuse(engine: Engine) -> None:
        asked = {**wish(1), "n": 1, "stop_ids": [], "max_tokens": 20}
        prompt = asked.pop("prompt")
        slow_reader = engine.generate(prompt, **asked)
        await anext(slow_reader)
        with pytest.raises(dvrt.RequestRejected, match="'r1' is already running"):
            await engine.complete(prompt, **asked)
        await asyncio.sleep(10.0)  # the request ends, unread
        second = asyncio.create_task(engine.complete(prompt, **asked))
        await asyncio.sleep(0.1)
        await slow_reader.aclose()
        assert (await second).finish_reason is dvrt.FinishReason.LENGTH

    virtual(mute, reuse)


def test_ten_thousand_may_wait(mute: Path) -> None:
    """Half of them give up; deadlines end a quarter; the queue stays in order for the rest."""

    async def crowd(engine: Engine) -> list[Outcome]:
        ends: list[int] = []

        async def client(number: int) -> Outcome:
            rng = random.Random(number)
            await asyncio.sleep(number * 1e-4)  # in order: what wakes at once is shuffled
            asked = {"prompt": [number % 307], "max_tokens": 1, "temperature": 0.0}
            deadline_s = 20.0 if number % 4 == 1 else None
            task = asyncio.create_task(ask(engine, asked, deadline_s=deadline_s))
            if number % 2 == 0:
                await asyncio.sleep(rng.random() * 10)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return Outcome((), ("",), "cancelled")
            done = await task
            if done.is_whole:
                ends.append(number)
            return done

        seen = await asyncio.gather(*(client(number) for number in range(10_000)))
        assert len(ends) > 2500
        waves = [sum(ends[at : at + 500]) for at in range(0, 2500, 500)]
        assert waves == sorted(waves)
        assert waves[-1] > 3 * waves[0]
        return seen

    outcomes = virtual(mute, crowd, max_queue=10_000, batch_size=16)
    reasons = {outcome.why[0] for outcome in outcomes}
    assert reasons == {"", "length", "deadline"}
    first = {n % 307: o.ids for n, o in enumerate(outcomes) if o.is_whole}
    for number, outcome in enumerate(outcomes):
        assert not outcome.is_whole or outcome.ids == first[number % 307]
