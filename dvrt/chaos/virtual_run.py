"""One schedule against a whole cluster in this process, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dvrt
from dvrt.actors.node import wiring
from dvrt.chaos.inside import Inside
from dvrt.chaos.judge import Verdict, is_whole, judge_answers, judge_events
from dvrt.chaos.schedule import N_NUMBERS, Action, Ask, Schedule
from dvrt.chaos.traffic import Answer, ask
from dvrt.chaos.turns import run_limited
from dvrt.chaos.weather import Weather
from dvrt.cluster.engine import Engine
from dvrt.cluster.plan import Split
from dvrt.errors import ConfigError, DvrtError
from dvrt.transport.faults import Direction

ALWAYS: Mapping[str, Any] = {
    "device": "null",
    "in_process": True,
    "max_context": 128,
    "null_step_ms": 20.0,
    "max_deaths": 60,
    "swap_anyway": True,
    "step_limit_s": 5.0,
}
ANSWER_LIMIT_S = 120.0
"""Virtual seconds after which an answer that has not ended is lost."""
REST_S = 1.0
"""After all answers, and when nothing is missing any more, what is left has so long to settle."""
GIVEN_UP_S = 2.0
"""After so long two workers that are apart lose their links."""
STEP_S = 0.05
MAX_TURNS = 30_000
"""Of the loop; a run takes some hundreds, a few thousand if much goes wrong."""


@dataclass(slots=True)
class _Report:
    faults: list[str] = field(default_factory=list)
    injected: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    recomputed: int = 0
    restored: int = 0
    n_lost: int = 0
    has_swapped: bool = False


def right_answers(model: Path, options: Mapping[str, Any] | None = None) -> dict[int, Answer]:
    """The undisturbed answers of all requests; the shape of the cluster cannot change them.

    ``options`` are those that say what is computed, such as device and chunk_tokens.
    """
    asks = tuple(Ask(number=number, at_s=0.0) for number in range(N_NUMBERS))
    shape = {"stages": 1, "batch_size": 16, **(options or {})}
    calm = Schedule(seed=0, options=shape, asks=asks)
    report = _run(model, calm)
    answers = {asked.number: each for asked, each in zip(asks, report.answers, strict=True)}
    wrong = [str(number) for number, answer in answers.items() if not is_whole(answer)]
    if wrong or report.faults:
        raise DvrtError(f"undisturbed, and yet: {report.faults}; requests {', '.join(wrong)}")
    return answers


def run_schedule(model: Path, schedule: Schedule, right: Mapping[int, Answer]) -> Verdict:
    """Run it and judge it; ``right`` has the answers of its requests.

    What the cluster raises is a fault of the run, and not raised.
    """
    try:
        report = _run(model, schedule)
    except ConfigError:
        raise
    except Exception as error:
        return Verdict(faults=(f"{type(error).__name__}: {error}",))
    faults = report.faults + judge_answers(schedule.asks, report.answers, right)
    return Verdict(
        faults=tuple(faults),
        n_asked=len(schedule.asks),
        n_whole=sum(map(is_whole, report.answers)),
        n_lost=report.n_lost,
        n_tokens=sum(len(ids) for answer in report.answers for ids in answer.ids),
        recomputed=report.recomputed,
        restored=report.restored,
        injected=tuple(report.injected),
        mix=tuple(_mix(schedule, report)),
    )


def _mix(schedule: Schedule, report: _Report) -> Iterator[str]:
    """What the run had, by what came of it where that can be seen."""
    options = schedule.options
    if options.get("prompt_stages"):
        yield "prompts apart"
    if report.has_swapped:
        yield "swapped"
    if options.get("spares"):
        yield "spares"
    if options.get("persist"):
        yield "persisted"
    for answer in report.answers:
        if not is_whole(answer) and not answer.error:
            yield "request given up"


def _run(model: Path, schedule: Schedule) -> _Report:
    weather = Weather()
    report = _Report()
    with _wired(weather, schedule), _placed(schedule.options) as options:
        main = _main(model, schedule, options, weather, report)
        run_limited(main, seed=schedule.seed, max_turns=MAX_TURNS)
    return report


@contextmanager
def _wired(weather: Weather, schedule: Schedule) -> Iterator[None]:
    """Only networks that are to be disturbed pay for it."""
    kinds = {action.kind for action in schedule.actions}
    if not kinds & {"stop", "zombie", "half", "apart", "slow"}:
        yield
        return
    token = wiring.set(weather.network)
    try:
        yield
    finally:
        wiring.reset(token)


@contextmanager
def _placed(options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The options with a directory to persist in, where they ask for one."""
    if not options.get("persist"):
        yield options
        return
    with TemporaryDirectory(prefix="dvrt-") as directory:
        yield {**options, "persist": directory}


async def _main(
    model: Path,
    schedule: Schedule,
    options: Mapping[str, Any],
    weather: Weather,
    report: _Report,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, context: report.faults.append(
            f"loop: {context.get('message')} {context.get('exception')!r}"
        )
    )
    async with dvrt.launch(model, **{**ALWAYS, **options}) as engine:
        disturbing = loop.create_task(_disturb(engine, schedule.actions, weather, report))
        asking = [ask(engine, asked, name=f"r{index}") for index, asked in enumerate(schedule.asks)]
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                report.answers.extend(await asyncio.gather(*asking))
                await disturbing
                await _settle(engine, report)
        finally:
            disturbing.cancel()
            await asyncio.gather(disturbing, return_exceptions=True)
        report.faults.extend(judge_events(engine.events()))
        report.recomputed = int(engine.metrics.value("dvrt_recomputed_tokens"))
        report.restored = int(engine.metrics.value("dvrt_restored_tokens"))
        status = engine.status()
        report.n_lost = status.n_lost
        report.has_swapped = any(each.swap.get("in_bytes") for each in status.workers)
    await asyncio.sleep(REST_S)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    report.faults.extend(f"left running: {task.get_name()}" for task in left)


async def _settle(engine: Engine, report: _Report) -> None:
    """Wait until nothing is missing; then nobody may have a row."""
    while engine.status().state != "serving":  # noqa: ASYNC110
        await asyncio.sleep(STEP_S)
    await asyncio.sleep(REST_S)
    status = engine.status()
    if status.n_running or status.n_queued:
        report.faults.append(f"{status.n_running} rows and {status.n_queued} places are kept")
    engine._controller.check_integrity()


async def _disturb(
    engine: Engine, actions: tuple[Action, ...], weather: Weather, report: _Report
) -> None:
    began = asyncio.get_running_loop().time()
    changes: list[asyncio.Task[None]] = []
    for action in actions:
        await asyncio.sleep(began + action.at_s - asyncio.get_running_loop().time())
        if action.kind == "rebalance":
            changes.append(asyncio.create_task(_rebalance(engine, action.pick, report)))
        else:
            _inject(Inside(engine), action, weather, report)
    await asyncio.gather(*changes)


def _inject(inside: Inside, action: Action, weather: Weather, report: _Report) -> None:
    living = inside.living
    if not living:
        return
    name = living[action.pick % len(living)]
    happens = True
    match action.kind:
        case "kill":
            inside.kill(name)
        case "stop" | "zombie":
            weather.silence(name, action.seconds)
        case "half":
            direction = (Direction.SEND, Direction.RECEIVE)[action.pick // 7 % 2]
            weather.silence(name, action.seconds, (direction,))
        case "apart":
            happens = _part(inside, name, action, weather)
        case "slow":
            weather.slow(name, action.seconds, (1 + action.pick % 50) / 1000)
        case "cut":
            inside.cut(name)
        case "hang":
            happens = inside.hang(name)
        case "oom":
            happens = inside.starve(name)
        case "corrupt":
            happens = inside.rot(name, action.pick)
        case "disk":
            happens = inside.fill_disk(name)
    if happens:
        report.injected.append(action.kind)


def _part(inside: Inside, name: str, action: Action, weather: Weather) -> bool:
    """The worker and another one do not hear each other for a while; the system gives up a link
    for which that is too long."""
    others = [each for each in inside.living if each != name]
    if not others:
        return False
    other = others[action.pick // 7 % len(others)]
    addresses = (inside.address(name), inside.address(other))
    if not all(addresses):
        return False
    weather.part(name, other, addresses, action.seconds)
    if action.seconds > GIVEN_UP_S:
        loop = asyncio.get_running_loop()
        loop.call_later(GIVEN_UP_S, inside.unlink, name, addresses[1])
    return True


async def _rebalance(engine: Engine, pick: int, report: _Report) -> None:
    """Ask for another split; that it cannot be had now, or is undone by a loss, is no fault."""
    splits = (
        Split(token=1),
        Split(token=2),
        Split(token=3),
        Split(prompt=1, token=1),
        Split(prompt=1, token=2),
        Split(prompt=2, token=1),
    )
    split = splits[pick % len(splits)]
    try:
        await engine._controller.rebalance(split)
    except DvrtError:
        return
    report.injected.append("rebalance")
