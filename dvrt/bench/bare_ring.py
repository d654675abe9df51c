"""The least that a ring of processes costs here: the round of ``bench pipeline`` without dvrt.

Every hop is one small message over a local socket, from an event loop to an event loop; a step is
time that passes by a clock, as on the null device. No actors, no messages to encode, no scheduler:
what such a ring does not reach, no runtime of this kind does on this machine.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress

from dvrt.fine_timer import FineTimer
from dvrt.processes.worker_process import loop_factory

_TICKET_BYTES = 16


def ring_busy_fraction(*, n_stages: int, step_s: float, seconds: float) -> float:
    """The share of the time in which the steps of ``n_stages`` processes are occupied.

    As many tickets go round as there are stages, over one more process, which stands for the
    controller and only passes them on.
    """
    n_hops = n_stages + 1
    with ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(n_hops)]
        for pair in pairs:
            for end in pair:
                stack.enter_context(end)
        costs = [0.0, *[step_s] * n_stages]
        processes = [
            stack.enter_context(_member(pairs[i][1], pairs[(i + 1) % n_hops][0], cost, seconds))
            for i, cost in enumerate(costs)
        ]
        for process in processes:
            _line_of(process)
        for number in range(n_stages):
            pairs[0][0].send(number.to_bytes(_TICKET_BYTES))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        occupied_s = [float(_line_of(process)) for process in processes]
    return sum(occupied_s) / n_stages / seconds


def _member(
    receives: socket.socket, sends: socket.socket, step_s: float, seconds: float
) -> subprocess.Popen[bytes]:
    fds = [receives.fileno(), sends.fileno()]
    return subprocess.Popen(
        [sys.executable, "-m", __spec__.name, *map(str, fds), str(step_s), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=fds,
    )


def _line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a member of the bare ring ended with {process.wait()}")
    return line


class _Member:
    """One process of the ring; ``occupied_s`` is by its device's clock."""

    def __init__(self, receives: socket.socket, sends: socket.socket, step_s: float) -> None:
        self.occupied_s = 0.0
        self._receives, self._sends, self._step_s = receives, sends, step_s
        self._loop = asyncio.get_running_loop()
        self._steps: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0
        self._timer = FineTimer(self._end)
        receives.setblocking(False)
        self._loop.add_reader(receives.fileno(), self._on_readable)

    def close(self) -> None:
        self._timer.close()
        self._loop.remove_reader(self._receives.fileno())

    def _on_readable(self) -> None:
        ticket = self._receives.recv(_TICKET_BYTES)
        if not ticket:  # the ring ends
            self._loop.remove_reader(self._receives.fileno())
        elif self._step_s:
            self._begin(ticket)
        else:
            self._pass_on(ticket)

    def _begin(self, ticket: bytes) -> None:
        self._free_at = max(self._free_at, time.monotonic()) + self._step_s
        self._steps.append((self._free_at, ticket))
        if len(self._steps) == 1:
            self._timer.set(self._free_at)

    def _end(self) -> None:
        _, ticket = self._steps.popleft()
        self.occupied_s += self._step_s
        self._pass_on(ticket)
        if self._steps:
            self._timer.set(self._steps[0][0])

    def _pass_on(self, ticket: bytes) -> None:
        with suppress(OSError):  # the next one may have ended before
            self._sends.send(ticket)


async def _serve(member: _Member, seconds: float) -> None:
    print(flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.readline)
    before = member.occupied_s
    await asyncio.sleep(seconds)
    print(member.occupied_s - before, flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.readline)  # until the others have measured, too
    member.close()


async def _take_part(receives: int, sends: int, step_s: float, seconds: float) -> None:
    with socket.socket(fileno=receives) as inlet, socket.socket(fileno=sends) as outlet:
        await _serve(_Member(inlet, outlet, step_s), seconds)


def main(receives: str, sends: str, step_s: str, seconds: str) -> None:
    """Be one process of a ring: a line when ready, one to begin, one with the seconds occupied."""
    with asyncio.Runner(loop_factory=loop_factory("auto")) as runner:
        runner.run(_take_part(int(receives), int(sends), float(step_s), float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
