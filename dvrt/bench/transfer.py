"""``bench transfer``: bytes from one process to another, against memcpy, a raw socket and NIXL.

Four transfers in flight; a transfer is over when the receiver knows that its bytes are there. The
sides take turns. Over shared memory the receiver borrows what came; ``_into`` is the same with a
copy into memory of its own, as streams do, and as NIXL does, which writes into the receiver's
memory. Digests are off but where a name says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from dvrt.bench.common import Measured, interleaved, median_ratio, spread
from dvrt.bench.transfer_cases import CASES, MIB, Case, Pool
from dvrt.bench.transfer_nixl import BRING, open_nixl
from dvrt.bench.transfer_peer import Kind, Peer, open_peer
from dvrt.bench.transfer_sides import (
    DEADLINE_S,
    ChannelSide,
    Memcpy,
    RawSocket,
    Side,
    channel_trips,
    socket_trips,
)
from dvrt.processes.worker_process import loop_factory
from dvrt.transport import connect, known_schemes

QUICK_CASES = ("64KiB", "1MiB", "8MiB", "64MiB", "scatter_1.5KiB", "scatter_8KiB", "prompt_128KiB")
DIGEST_CASES = ("1MiB", "64MiB", "prompt_128KiB")
AGAINST_NIXL = ("64MiB", "8MiB", "1MiB", "scatter_1.5KiB", "scatter_8KiB", "prompt_128KiB")
Taken = Mapping[str, Mapping[str, list[float]]]


def measure(*, quick: bool) -> Measured:
    """Gigabytes a second of every side for every case, and the ratios that are promised."""
    cases = [case for case in CASES if not quick or case.name in QUICK_CASES]
    repeats = 3 if quick else 9
    notes = [
        "GB/s; 64 bytes one way in microseconds; loop: uvloop where it is installed",
        "nothing is predicted: such rates are what a profile measures and predictions are made of",
    ]
    with _sides(notes) as (sides, small):
        taken = {
            case.name: _measure(case, sides, repeats, (64 if quick else 256) * MIB)
            for case in cases
        }
        trips = interleaved(small, repeats=repeats)
        perftest = _perftest(repeats) if "ucx" in taken.get("64MiB", ()) else []
    results: dict[str, Any] = {
        name: {side: spread(values) for side, values in found.items()}
        for name, found in taken.items()
    }
    results["small"] = {side: spread(values) for side, values in trips.items()}
    ratios = _ratios(taken)
    ratios["small_vs_socket"] = median_ratio(trips, "auto", "socket")
    if perftest:
        results["ucx_perftest_64MiB"] = spread(perftest)
        median = results["ucx_perftest_64MiB"]["median"]
        ratios["ucx_vs_perftest_64MiB"] = results["64MiB"]["ucx"]["median"] / median
    elif "ucx" in taken.get("64MiB", ()):
        notes.append("ucx_perftest: not measured; apt install ucx-utils brings it")
    return Measured(results=results, ratios=ratios, notes=notes)


def _measure(
    case: Case, sides: Mapping[str, Side], repeats: int, repeat_bytes: int
) -> dict[str, list[float]]:
    """GB/s of the sides, taking turns, after each has shown that it moves the right bytes."""
    count = case.count(repeat_bytes)
    taking: dict[str, Callable[[], float]] = {}
    for name, side in sides.items():
        if name.endswith("_digest") and case.name not in DIGEST_CASES:
            continue
        if isinstance(side, ChannelSide):
            side.ensure_right(case)
        taking[name] = lambda side=side: case.nbytes * count / side(case, count) / 1e9  # type: ignore[misc]
    return interleaved(taking, repeats=repeats)


def _ratios(taken: Taken) -> dict[str, float]:
    """The promised figures, as far as this run has both sides of them."""
    wanted = [("auto_vs_memcpy_64MiB", "64MiB", "auto", "memcpy")]
    wanted += [(f"auto_vs_nixl_{name}", name, "auto", "nixl") for name in AGAINST_NIXL]
    wanted += [(f"auto_into_vs_nixl_{name}", name, "auto_into", "nixl") for name in AGAINST_NIXL]
    wanted += [("tcp_vs_socket_64MiB", "64MiB", "tcp", "socket")]
    return {
        ratio: median_ratio(taken[case], over, under)
        for ratio, case, over, under in wanted
        if over in taken.get(case, ()) and under in taken.get(case, ())
    }


@contextlib.contextmanager
def _sides(
    notes: list[str],
) -> Iterator[tuple[dict[str, Side], dict[str, Callable[[], float]]]]:
    """All sides that can be had, and two that bounce a small message; notes say what is missing."""
    schemes = ["auto", "shm", "tcp"]
    if "ucx" in known_schemes():
        if find_spec("ucxx") is not None:
            schemes.append("ucx")
        else:
            notes.append("ucx: not measured; needs the package ucxx-cu12")
    source = Pool()
    source.scribble()
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory("auto")))
        peer = stack.enter_context(open_peer(schemes))
        nixl = stack.enter_context(open_nixl())
        channels = runner.run(_connect(peer))
        stack.callback(lambda: runner.run(_close(channels)))
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", peer.port)))
        sides: dict[str, Side] = {"memcpy": Memcpy(source, Pool())}
        sides["socket"] = RawSocket(sock, source)
        for name, scheme, kind in _channel_sides(schemes):
            sides[name] = ChannelSide(runner, channels[scheme], source, kind)
        if nixl is None:
            notes.append(f"nixl: not measured; {BRING} brings it")
        else:
            sides["nixl"] = lambda case, count: nixl.run(CASES.index(case), count)
        notes.append(f"auto picked {channels['auto'].peer.partition(':')[0]}")
        small: dict[str, Callable[[], float]] = {
            "auto": lambda: channel_trips(runner, channels["auto"], 1000) * 1e6,
            "socket": lambda: socket_trips(runner, peer.pair, 1000) * 1e6,
        }
        peer.pair.setblocking(False)
        yield sides, small


def _channel_sides(schemes: list[str]) -> Iterator[tuple[str, str, Kind]]:
    """(name of the side, scheme, what the receiver does)."""
    for scheme in schemes:
        yield scheme, scheme, Kind.BORROW if scheme in ("auto", "shm") else Kind.INTO
    yield "auto_into", "auto", Kind.INTO
    yield "auto_digest", "auto", Kind.BORROW_DIGEST


async def _connect(peer: Peer) -> dict[str, Any]:
    return {
        scheme: await connect(address, deadline_s=DEADLINE_S)
        for scheme, address in peer.addresses.items()
    }


async def _close(channels: Mapping[str, Any]) -> None:
    for channel in channels.values():
        await channel.aclose()


def _perftest(repeats: int) -> list[float]:
    """GB/s of UCX's own tool between two processes, 64 MiB messages; nothing without it."""
    program = shutil.which("ucx_perftest")
    if program is None:
        return []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "-p", str(port), "-t", "tag_bw", "-s", str(64 * MIB), "-n", "10", "-w", "2"]
    return [value for _ in range(repeats) if (value := _perftest_once(command)) is not None]


def _perftest_once(command: list[str]) -> float | None:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            client = [command[0], "127.0.0.1", *command[1:]]
            found = _client_of(client)
        finally:
            server.terminate()
    last = re.findall(r"^Final:.*$", found, re.MULTILINE)
    return float(last[-1].split()[5]) * MIB / 1e9 if last else None


def _client_of(client: list[str]) -> str:
    """What the client says, as soon as the server listens."""
    give_up_at = time.monotonic() + 5.0
    while True:
        done = subprocess.run(client, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0 or time.monotonic() > give_up_at:
            return done.stdout
        time.sleep(0.05)
