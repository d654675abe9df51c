"""The fault matrix, a test each: what is noticed when, in virtual time; no token changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import dvrt
from dvrt.actors.limits import NodeLimits
from dvrt.actors.node import wiring
from dvrt.chaos.inside import Inside
from dvrt.chaos.judge import judge_answers, judge_events
from dvrt.chaos.schedule import Ask
from dvrt.chaos.traffic import Answer, ask
from dvrt.chaos.weather import Weather
from dvrt.cluster.crew import Crew
from dvrt.cluster.engine import Engine
from dvrt.cluster.partings import HELD_S, LONGEST_PAUSE_S, PATIENCE_S
from dvrt.stages.replicas import ReplicaActor
from dvrt.transport.faults import Direction
from dvrt.virtual import run_virtual

ASKS = tuple(Ask(number=number, at_s=0.0) for number in range(12))
VICTIM = "worker-1"
SILENCE_S = 0.8
"""heartbeat_s times heartbeat_misses, by default."""
BEAT_S = 0.2
GIVEN_UP_S = NodeLimits().unacknowledged_s
"""When the system gives up a link on which nothing is acknowledged."""
Fault = Callable[[Engine, Weather], Awaitable[None]]


class Seen:
    """What a fault led to; times count from the fault."""

    def __init__(self) -> None:
        self.detected_s = self.whole_s = 0.0
        self.reason = ""
        self.names: list[str] = []
        self.restored = self.recomputed = 0.0
        self.n_corrupted = 0


def disturbed(
    model: Path,
    right: dict[int, Answer],
    fault: Fault,
    *,
    is_lost: bool = True,
    limit_s: float = 120.0,
    **options: Any,
) -> Seen:
    """The crowd is answered while the fault happens in its midst; every answer is checked."""
    weather, seen = Weather(), Seen()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        chosen = {"stages": 3, "batch_size": 2, "max_context": 128, "null_step_ms": 20.0}
        launch = dvrt.launch(model, device="null", in_process=True, **{**chosen, **options})
        async with launch as engine:
            asking = asyncio.gather(*(ask(engine, each, name=f"r{each.number}") for each in ASKS))
            await asyncio.sleep(0.7)
            began = loop.time()
            await fault(engine, weather)
            while is_lost and not engine.status().n_lost:
                await asyncio.sleep(0.001)
            seen.detected_s = loop.time() - began
            while not engine.is_healthy():
                await asyncio.sleep(0.001)
            seen.whole_s = loop.time() - began
            assert judge_answers(ASKS, await asking, right) == []
            await asyncio.sleep(3.0)
            assert judge_events(engine.events()) == []
            engine._controller.check_integrity()
            lost = [each for each in engine.events() if each.state == "lost"]
            seen.names = [each.subject for each in lost if each.subject.startswith("worker")]
            seen.reason = next((e.reason for e in lost if e.subject.endswith(VICTIM)), "")
            seen.restored = engine.metrics.value("dvrt_restored_tokens")
            seen.recomputed = engine.metrics.value("dvrt_recomputed_tokens")

    async def guarded() -> None:
        async with asyncio.timeout(limit_s):
            await main()

    token = wiring.set(weather.network)
    try:
        run_virtual(guarded())
    finally:
        wiring.reset(token)
    return seen


def test_a_kill_is_known_at_once(model: Path, right: dict[int, Answer]) -> None:
    async def fault(engine: Engine, _: Weather) -> None:
        Inside(engine).kill(VICTIM)

    seen = disturbed(model, right, fault)
    assert seen.detected_s < 0.01
    assert seen.whole_s < 0.1
    assert seen.names == [VICTIM]
    assert seen.restored > max(100, seen.recomputed)


def test_a_stopped_worker_is_known_after_the_missed_heartbeats(
    model: Path, right: dict[int, Answer]
) -> None:
    async def fault(_: Engine, weather: Weather) -> None:
        weather.silence(VICTIM, 1000.0)

    seen = disturbed(model, right, fault)
    assert abs(seen.detected_s - SILENCE_S) <= BEAT_S
    assert seen.whole_s < seen.detected_s + 0.1
    assert seen.names == [VICTIM] and "nothing was heard" in seen.reason


@pytest.mark.parametrize("asleep_s", [1.2, 2.0, 3.0])
def test_a_zombie_is_fenced(
    model: Path, right: dict[int, Answer], monkeypatch: pytest.MonkeyPatch, asleep_s: float
) -> None:
    """The worker cannot be killed, wakes up when it is replaced, and goes on with old steps."""
    spared: list[str] = []
    monkeypatch.setattr(Crew, "kill", lambda self, name: spared.append(name))

    async def fault(_: Engine, weather: Weather) -> None:
        weather.silence(VICTIM, asleep_s)

    seen = disturbed(model, right, fault)
    assert spared and set(spared) == {VICTIM}
    assert seen.names == [VICTIM]
    assert seen.detected_s <= SILENCE_S + BEAT_S


def test_a_worker_that_wakes_in_time_is_kept(model: Path, right: dict[int, Answer]) -> None:
    async def fault(_: Engine, weather: Weather) -> None:
        weather.silence(VICTIM, SILENCE_S - 2 * BEAT_S)

    assert disturbed(model, right, fault, is_lost=False).names == []


@pytest.mark.parametrize("direction", list(Direction), ids=lambda each: each.value)
def test_a_half_open_link_is_known(
    model: Path, right: dict[int, Answer], direction: Direction
) -> None:
    """A worker that hears nothing falls silent, and is then noticed as a silent one is."""

    async def fault(_: Engine, weather: Weather) -> None:
        weather.silence(VICTIM, 1000.0, (direction,))

    n_silences = 1 if direction is Direction.SEND else 2
    seen = disturbed(model, right, fault)
    assert seen.detected_s <= n_silences * (SILENCE_S + BEAT_S)
    assert seen.names == [VICTIM]


def test_a_black_hole_that_swallows_two_workers(model: Path, right: dict[int, Answer]) -> None:
    async def fault(_: Engine, weather: Weather) -> None:
        weather.silence("worker-1", 1000.0)
        weather.silence("worker-2", 1000.0)

    seen = disturbed(model, right, fault)
    assert seen.detected_s <= SILENCE_S + BEAT_S
    assert sorted(seen.names) == ["worker-1", "worker-2"]


def unlink(engine: Engine, one: str, other: str) -> None:
    inside = Inside(engine)
    inside.unlink(one, inside.address(other))


@pytest.mark.parametrize("seconds", [0.5, 2.5, 8.0])
def test_neighbours_that_do_not_hear_each_other_for_a_while_are_kept(
    model: Path, right: dict[int, Answer], seconds: float
) -> None:
    """The system gives up their link meanwhile, and new ones do not come about at once."""

    async def fault(engine: Engine, weather: Weather) -> None:
        inside = Inside(engine)
        addresses = (inside.address("worker-0"), inside.address(VICTIM))
        weather.part("worker-0", VICTIM, addresses, seconds)
        await asyncio.sleep(0.4)
        unlink(engine, "worker-0", VICTIM)

    assert disturbed(model, right, fault, is_lost=False).names == []


def test_neighbours_whose_links_break_again_and_again(
    model: Path, right: dict[int, Answer]
) -> None:
    """No step gets through: one of the two is replaced, and not sooner than said."""

    async def fault(engine: Engine, _: Weather) -> None:
        while not engine.status().n_lost:
            unlink(engine, "worker-0", VICTIM)
            await asyncio.sleep(0.01)

    seen = disturbed(model, right, fault)
    assert seen.names == [VICTIM] and "worker-0 do not reach each other" in seen.reason
    assert PATIENCE_S <= seen.detected_s <= PATIENCE_S + 2 * LONGEST_PAUSE_S


APART = {"stages": None, "prompt_stages": 1, "token_stages": 2}


@pytest.mark.parametrize("far", ["worker-1", "worker-2"])
def test_a_prompt_stage_that_never_again_reaches_a_token_stage(
    model: Path, right: dict[int, Answer], far: str
) -> None:
    """Their logs do not arrive, however often they are sent: one of the two is replaced."""

    async def fault(engine: Engine, weather: Weather) -> None:
        await part_for_good(engine, weather, "worker-0", far)

    seen = disturbed(model, right, fault, limit_s=300.0, **APART)
    assert seen.names == [far]
    assert GIVEN_UP_S + PATIENCE_S <= seen.detected_s <= 60.0


def test_a_prompt_stage_that_reaches_a_token_stage_again(
    model: Path, right: dict[int, Answer]
) -> None:
    async def fault(engine: Engine, weather: Weather) -> None:
        inside = Inside(engine)
        addresses = (inside.address("worker-0"), inside.address("worker-1"))
        weather.part("worker-0", "worker-1", addresses, 14.0)
        await asyncio.sleep(GIVEN_UP_S)
        unlink(engine, "worker-0", "worker-1")

    assert disturbed(model, right, fault, is_lost=False, limit_s=300.0, **APART).names == []


async def part_for_good(engine: Engine, weather: Weather, one: str, other: str) -> None:
    """They do not hear each other any more; the system gives up their link after a while."""
    inside = Inside(engine)
    addresses = (inside.address(one), inside.address(other))
    weather.part(one, other, addresses, 1e6)
    await asyncio.sleep(GIVEN_UP_S)
    inside.unlink(one, addresses[1])


def test_blips_far_from_each_other_do_not_add_up(model: Path, right: dict[int, Answer]) -> None:
    async def fault(engine: Engine, _: Weather) -> None:
        for _ in range(12):
            unlink(engine, "worker-0", VICTIM)
            await asyncio.sleep(HELD_S + 2)

    assert disturbed(model, right, fault, is_lost=False, limit_s=1000.0).names == []


def test_a_stage_that_is_told_something_else_while_it_waits_to_connect(
    model: Path, right: dict[int, Answer], tmp_path: Path
) -> None:
    """What was lost with its link is lost all the same."""

    async def fault(engine: Engine, _: Weather) -> None:
        unlink(engine, "worker-0", VICTIM)
        await asyncio.sleep(0.02)
        engine._controller._overseer.archive_failed("worker-0")

    seen = disturbed(model, right, fault, is_lost=False, persist=str(tmp_path))
    assert seen.names == []


def test_slow_steps_in_a_long_queue_are_no_stuck_worker(
    model: Path, right: dict[int, Answer]
) -> None:
    """Each is within the limit, and so is nothing else that waits behind them."""

    async def fault(_: Engine, __: Weather) -> None:
        return

    options = {"microbatches": 6, "null_step_ms": 1000.0, "step_limit_s": 3.0, "stages": 2}
    seen = disturbed(model, right, fault, is_lost=False, limit_s=1000.0, **options)
    assert seen.names == []


def test_a_cut_link_is_known_at_once(model: Path, right: dict[int, Answer]) -> None:
    async def fault(engine: Engine, _: Weather) -> None:
        Inside(engine).cut(VICTIM)

    seen = disturbed(model, right, fault)
    assert seen.detected_s < 0.01
    assert seen.names == [VICTIM]


@pytest.mark.parametrize("delay_s", [0.005, 0.05, 0.3])
def test_a_slow_link_kills_nobody(model: Path, right: dict[int, Answer], delay_s: float) -> None:
    async def fault(_: Engine, weather: Weather) -> None:
        weather.slow(VICTIM, 2.0, delay_s)

    assert disturbed(model, right, fault, is_lost=False).names == []


def test_a_step_that_never_ends_is_known_after_its_limit(
    model: Path, right: dict[int, Answer]
) -> None:
    async def fault(engine: Engine, _: Weather) -> None:
        assert Inside(engine).hang(VICTIM)

    seen = disturbed(model, right, fault, step_limit_s=3.0)
    assert seen.names == [VICTIM] and "it is stuck" in seen.reason
    assert 3.0 <= seen.detected_s <= 3.1


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_a_worker_without_memory_is_replaced(
    model: Path, right: dict[int, Answer], worker: int
) -> None:
    async def fault(engine: Engine, _: Weather) -> None:
        assert Inside(engine).starve(f"worker-{worker}")

    seen = disturbed(model, right, fault)
    assert seen.names == [f"worker-{worker}"]
    assert seen.detected_s < 0.2


def test_a_corrupted_copy_is_refused_and_computed_again(
    model: Path, right: dict[int, Answer]
) -> None:
    async def rot(engine: Engine, _: Weather) -> None:
        inside = Inside(engine)
        for name in inside.living:
            for actor in inside.actors(name, ReplicaActor):
                for shelf in actor._shelves.values():
                    for copy in filter(lambda each: each.nbytes, shelf.copies.values()):
                        copy.data[0] ^= 1
        inside.kill(VICTIM)

    async def kill(engine: Engine, _: Weather) -> None:
        Inside(engine).kill(VICTIM)

    sound, rotten = disturbed(model, right, kill), disturbed(model, right, rot)
    assert rotten.restored == 0 < sound.restored
    assert rotten.recomputed > sound.recomputed


def test_a_full_disk_is_known_at_once_and_stops_nobody(
    model: Path, right: dict[int, Answer], tmp_path: Path
) -> None:
    async def fault(engine: Engine, _: Weather) -> None:
        assert Inside(engine).fill_disk(VICTIM)
        while not (told := [e for e in engine.events() if e.state == "persistence off"]):
            await asyncio.sleep(0.001)
        assert VICTIM in told[0].reason and "No space left" in told[0].reason

    seen = disturbed(model, right, fault, is_lost=False, persist=str(tmp_path))
    assert seen.names == []
    assert 0 < seen.detected_s < 0.2


def test_what_a_full_disk_has_is_true_when_everybody_dies(
    model: Path, right: dict[int, Answer], tmp_path: Path
) -> None:
    async def die(engine: Engine, _: Weather) -> None:
        await asyncio.sleep(0.3)
        inside = Inside(engine)
        for name in inside.living:
            inside.kill(name)

    async def fill_and_die(engine: Engine, weather: Weather) -> None:
        assert Inside(engine).fill_disk(VICTIM)
        await die(engine, weather)

    sound = disturbed(model, right, die, persist=str(tmp_path / "sound"))
    full = disturbed(model, right, fill_and_die, persist=str(tmp_path / "full"))
    assert 0 < full.restored < sound.restored
    assert full.recomputed > sound.recomputed


def test_copies_that_find_no_room_are_computed_again(model: Path, right: dict[int, Answer]) -> None:
    async def fault(engine: Engine, _: Weather) -> None:
        Inside(engine).kill(VICTIM)

    roomy = disturbed(model, right, fault)
    tight = disturbed(model, right, fault, replica_memory="1KB")
    assert 0 < tight.restored < roomy.restored
    assert tight.recomputed > roomy.recomputed
