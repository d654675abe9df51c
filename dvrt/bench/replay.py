"""A load of the simulator's, replayed on a running engine, and counted as the simulator counts.

Requests are sent when they come, whether others have been answered or not. Lengths are those of the
load; what the tokens are does not matter.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress

import dvrt
from dvrt.bench.profile_runtime import until_whole
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.deployment import Failure
from dvrt.simulator.tally import Ended, Tally

LARGEST_TOKEN = 300


async def replay(
    engine: dvrt.Engine, requests: Sequence[Arrival], *, failures: Sequence[Failure] = ()
) -> Tally:
    """Throughput and latencies of all requests, in seconds from the first moment of the load.

    The worker of each machine that fails is killed; machines are counted as in the simulator, those
    for prompts first. Returns when every request is answered and every stage has a worker again.
    Raises DvrtError when a request fails, TimeoutError when a stage stays lost.
    """
    loop = asyncio.get_running_loop()
    tally, begin = Tally(), loop.time()
    async with asyncio.TaskGroup() as group:
        for each in failures:
            group.create_task(_fail(engine, each, begin))
        for number, arrival in enumerate(requests):
            await asyncio.sleep(begin + arrival.at_s - loop.time())
            group.create_task(_ask(engine, arrival, number, tally, begin))
    await until_whole(engine)
    return tally


async def _ask(
    engine: dvrt.Engine, arrival: Arrival, number: int, tally: Tally, begin: float
) -> None:
    prompt = [(number * 31 + i * 7) % LARGEST_TOKEN for i in range(arrival.prompt)]
    sent_s = asyncio.get_running_loop().time() - begin
    tally.arrived(sent_s)
    answer = await engine.complete(
        prompt, max_tokens=arrival.output, temperature=0.0, ignore_eos=True
    )
    timings = answer.timings
    first_s, end_s = sent_s + timings.first_token_s, sent_s + timings.total_s
    tally.ended(Ended(sent_s, first_s, end_s, arrival.prompt, arrival.output))


async def _fail(engine: dvrt.Engine, failure: Failure, begin: float) -> None:
    """Kill the worker that is the machine then."""
    await asyncio.sleep(begin + failure.at_s - asyncio.get_running_loop().time())
    workers = [
        each
        for each in engine.status().workers
        if each.stage is not None and each.state not in ("lost", "ended")
    ]
    ring = sorted(workers, key=lambda each: (each.role == "token", each.stage))
    with suppress(ProcessLookupError):
        os.kill(ring[failure.machine].pid, signal.SIGKILL)
