"""Faults against a cluster of real processes, while requests come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dvrt
from dvrt.chaos.judge import is_whole, judge_answer, judge_events
from dvrt.chaos.schedule import Ask
from dvrt.chaos.traffic import Answer, ask
from dvrt.cluster.engine import Engine
from dvrt.errors import DvrtError

REAL_KINDS = ("kill", "stop", "zombie", "cut", "slow", "oom", "disk")
"""What can be done to a process from outside: SIGKILL, SIGSTOP, SIGSTOP and later SIGCONT, its
links to the controller cut, SIGSTOP and SIGCONT in turn, a limit on its memory, and one on the size
of files, where logs are persisted."""
N_CLIENTS = 8
N_NUMBERS = 40
MEAN_GAP_S = 1.0
"""Between one fault and the next, on average."""
WHOLE_LIMIT_S = 60.0
"""After the last fault, the cluster must be whole again within this time."""
ANSWER_LIMIT_S = 120.0
PULSE_S = 0.05
GONE = ("lost", "ended")


@dataclass(slots=True)
class RealReport:
    """``injected`` counts faults by kind, ``asked`` and the rest requests."""

    seed: int
    faults: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    n_asked: int = 0
    n_whole: int = 0
    n_left: int = 0
    n_tokens: int = 0
    n_lost_workers: int = 0
    recomputed: int = 0
    restored: int = 0
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        return not self.faults


async def run_real(
    values: Mapping[str, Any], *, seed: int, kinds: Sequence[str], duration_s: float
) -> RealReport:
    """Launch ``values``, learn the answers undisturbed, then disturb for ``duration_s``.

    Raises what launching raises.
    """
    report = RealReport(seed)
    if not values.get("persist"):
        kinds = [kind for kind in kinds if kind != "disk"]
    # Faults come faster than workers may be lost, unless the caller wants it otherwise.
    async with dvrt.launch(**{"max_deaths": 10_000, **values}) as engine:
        right = await _learn(engine)
        began = time.monotonic()
        async with _disturbed(engine, seed, kinds, report):
            until = began + duration_s
            clients = [
                _client(engine, random.Random(f"{seed} {i}"), f"c{i}", until, right, report)
                for i in range(N_CLIENTS)
            ]
            await asyncio.gather(*clients)
        report.faults += await _until_whole(engine)
        report.faults += judge_events(engine.events())
        report.seconds = time.monotonic() - began
        report.n_lost_workers = engine.status().n_lost
        report.recomputed = int(engine.metrics.value("dvrt_recomputed_tokens"))
        report.restored = int(engine.metrics.value("dvrt_restored_tokens"))
    return report


async def _learn(engine: Engine) -> dict[int, Answer]:
    asks = [Ask(number=number, at_s=0.0) for number in range(N_NUMBERS)]
    answers = await asyncio.gather(*(ask(engine, each, name=f"u{each.number}") for each in asks))
    for asked, answer in zip(asks, answers, strict=True):
        if not is_whole(answer):
            raise DvrtError(f"request {asked.number} fails undisturbed: {answer.error}")
    return {asked.number: answer for asked, answer in zip(asks, answers, strict=True)}


async def _client(
    engine: Engine,
    rng: random.Random,
    name: str,
    until: float,
    right: Mapping[int, Answer],
    report: RealReport,
) -> None:
    """One request after the other; now and then it leaves before the end."""
    turn = 0
    while time.monotonic() < until:
        leave_after = rng.choice((None, None, None, rng.randint(1, 8)))
        asked = Ask(number=rng.randrange(N_NUMBERS), at_s=0.0, leave_after=leave_after)
        turn += 1
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                answer = await ask(engine, asked, name=f"{name}-{turn}")
        except TimeoutError:
            report.faults.append(f"request {asked.number} had no end in {ANSWER_LIMIT_S:g} s")
            return
        report.n_asked += 1
        report.n_whole += is_whole(answer)
        report.n_left += not is_whole(answer) and not answer.error
        report.n_tokens += sum(map(len, answer.ids))
        fault = judge_answer(asked, answer, right[asked.number])
        if fault:
            report.faults.append(fault)


@contextlib.asynccontextmanager
async def _disturbed(
    engine: Engine, seed: int, kinds: Sequence[str], report: RealReport
) -> AsyncIterator[None]:
    rng = random.Random(f"faults {seed}")
    task = asyncio.create_task(_disturb(engine, rng, kinds, report))
    try:
        yield
    finally:
        task.cancel()
        ended = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(ended, Exception):
            report.faults.append(f"the faults ended: {ended!r}")


async def _disturb(
    engine: Engine, rng: random.Random, kinds: Sequence[str], report: RealReport
) -> None:
    async with asyncio.TaskGroup() as group:
        while kinds:
            await asyncio.sleep(rng.expovariate(1 / MEAN_GAP_S))
            living = [each for each in engine.status().workers if each.state not in GONE]
            if living:
                kind, victim = rng.choice(kinds), rng.choice(living)
                report.injected[kind] += 1
                group.create_task(_inject(engine, kind, victim.name, victim.pid, rng.random()))


async def _inject(engine: Engine, kind: str, name: str, pid: int, luck: float) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended by itself
        match kind:
            case "kill":
                os.kill(pid, signal.SIGKILL)
            case "stop":
                os.kill(pid, signal.SIGSTOP)
            case "zombie":
                os.kill(pid, signal.SIGSTOP)
                await _resume(pid, 0.1 + 2 * luck)
            case "slow":
                for _ in range(int(20 * luck) + 1):
                    os.kill(pid, signal.SIGSTOP)
                    await _resume(pid, PULSE_S)
                    await asyncio.sleep(PULSE_S)
            case "cut":
                member = engine._controller._overseer.roster.get(name)
                if member is not None:
                    address = member.host.node_address
                    engine._controller.node.cut(address, "it was cut on purpose")
            case "oom":
                resource.prlimit(pid, resource.RLIMIT_AS, (1, resource.RLIM_INFINITY))
            case "disk":
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


async def _resume(pid: int, after_s: float) -> None:
    try:
        await asyncio.sleep(after_s)
    finally:
        os.kill(pid, signal.SIGCONT)


async def _until_whole(engine: Engine) -> list[str]:
    """What is still wrong with the cluster when it should have nothing to do."""
    try:
        async with asyncio.timeout(WHOLE_LIMIT_S):
            while not engine.is_healthy() or engine.status().n_running:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        status = engine.status()
        return [f"{status.state} after {WHOLE_LIMIT_S:g} s, {status.n_running} rows kept"]
    engine._controller.check_integrity()
    return []
