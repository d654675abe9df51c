"""Many clusters, one load: each process plays its share of the clusters against the whole load.

Routing depends on arrivals alone, so clusters do not know of each other, and every process can tell
by itself which requests are its own. No request is kept longer than it is open.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dvrt.errors import DvrtError
from dvrt.observe.trace import Tracer
from dvrt.simulator.arrivals import Load, arrivals
from dvrt.simulator.cluster import Cluster
from dvrt.simulator.deployment import Deployment
from dvrt.simulator.router import LEAST_WORK, make_router
from dvrt.simulator.tally import Tally, TallyState
from dvrt.wire import decode, encode, message

OnProgress = Callable[[int], None]
PROGRESS_EVERY = 1000
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from dvrt.simulator.fleet import main; main()"
)


@message("simulator.job")
class Job:
    """Share ``index`` of ``n_shares`` of a simulation: every so-many-eth cluster."""

    deployment: Deployment
    load: Load
    router: str = LEAST_WORK
    index: int = 0
    n_shares: int = 1
    leaps: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it, and the seconds that it took to simulate."""

    deployment: Deployment
    tally: Tally
    wall_s: float
    processes: int

    @property
    def events_per_s(self) -> float:
        """Steps of stages simulated in a second."""
        return self.tally.counts["stage_steps"] / self.wall_s


def simulate(
    deployment: Deployment,
    load: Load,
    *,
    router: str = LEAST_WORK,
    processes: int | None = None,
    leaps: bool = True,
    tracer: Tracer | None = None,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Play a load on a deployment, over ``processes`` (default: one a core).

    A trace needs one process. ``on_progress`` is told how many requests of the load have come. An
    interruption ends the other processes and is raised. Raises ConfigError for a load that is wrong
    and DvrtError when a process ended.
    """
    n_shares = min(processes or os.cpu_count() or 1, deployment.clusters)
    if tracer is not None:
        n_shares = 1
    jobs = [
        Job(
            deployment=deployment,
            load=load,
            router=router,
            index=index,
            n_shares=n_shares,
            leaps=leaps,
        )
        for index in range(n_shares)
    ]
    began = time.monotonic()
    with _started(jobs[1:]) as others:
        tally = play(jobs[0], tracer=tracer, on_progress=on_progress)
        for process in others:
            tally.merge(_result(process))
    wall_s = time.monotonic() - began
    return Outcome(deployment=deployment, tally=tally, wall_s=wall_s, processes=n_shares)


def play(job: Job, *, tracer: Tracer | None = None, on_progress: OnProgress | None = None) -> Tally:
    """One share, in this process."""
    tally = Tally()
    clusters = {
        number: Cluster(job.deployment, tally, number=number, leaps=job.leaps, tracer=tracer)
        for number in range(job.index, job.deployment.clusters, job.n_shares)
    }
    route = make_router(job.router, job.deployment)
    for count, arrival in enumerate(arrivals(job.load)):
        cluster = clusters.get(route(arrival))
        if cluster is not None:
            cluster.advance(arrival.at_s)
            cluster.submit(arrival)
        if on_progress is not None and count % PROGRESS_EVERY == 0:
            on_progress(count)
    for cluster in clusters.values():
        cluster.advance(float("inf"))
        cluster.finish()
    return tally


@contextmanager
def _started(jobs: list[Job]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A process for each job, at work; all ended at the end."""
    import json

    processes: list[subprocess.Popen[bytes]] = []
    try:
        for job in jobs:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            processes.append(process)
            _hand_over(process, job)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _hand_over(process: subprocess.Popen[bytes], job: Job) -> None:
    """A process that has ended already is found out when its result is asked for."""
    assert process.stdin is not None
    with suppress(OSError), process.stdin as pipe:
        pipe.write(encode(job))
    process.stdin = None


def _result(process: subprocess.Popen[bytes]) -> Tally:
    answer, _ = process.communicate()
    if process.returncode:
        raise DvrtError(f"a simulating process ended with {process.returncode}")
    state = decode(answer)
    assert isinstance(state, TallyState)
    return Tally.from_state(state)


def main() -> None:
    """The process itself: a job on its input, a tally on its output.

    What is wrong with the load is wrong in the parent, too, and is for it to say.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = decode(sys.stdin.buffer.read())
    assert isinstance(job, Job)
    try:
        tally = play(job)
    except DvrtError:
        sys.exit(1)
    sys.stdout.buffer.write(encode(tally.state()))
