"""NIXL's side of ``bench transfer``: a program for an environment that has nixl and numpy only.

Writes from its own memory into another process's, four transfers in flight, prepared beforehand;
each tells the receiver. Reads cases (JSON) from the command line, then ``case count`` per line of
stdin, and answers each with seconds, or with what went wrong.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import zlib
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

IN_FLIGHT = 4
LIMIT_S = 60.0


def main() -> None:
    pool_bytes, cases = json.loads(sys.argv[1])
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=receive, args=(theirs, pool_bytes, cases), daemon=True)
    process.start()
    theirs.close()
    sender = Sender(ours, pool_bytes, cases)
    say("ready")  # NIXL logs to stdout until here
    for line in sys.stdin:
        number, count = map(int, line.split())
        say(sender.run(number, count))
    ours.send(None)
    process.join(LIMIT_S)


def say(answer: object) -> None:
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


def open_agent(name: str, pool_bytes: int) -> tuple[Any, np.ndarray, Any]:
    """An agent that is driven by its caller, and a pool that it knows."""
    nixl = import_module("nixl_cu12._api")
    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(enable_prog_thread=False))
    pool = np.empty(pool_bytes, np.uint8)
    pool[:] = 1
    registered = agent.register_memory([(pool.ctypes.data, pool_bytes, 0, "pool")], "DRAM")
    return agent, pool, registered


class Sender:
    """Owns the prepared transfers of all cases."""

    def __init__(self, peer: Connection, pool_bytes: int, cases: list[dict[str, Any]]) -> None:
        self._peer = peer
        self._agent, self._pool, self._registered = open_agent("sender", pool_bytes)
        words = self._pool.view(np.uint64)
        words[:] = np.arange(len(words), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        peer.send(self._agent.get_agent_metadata())
        metadata, self._address = peer.recv()
        self._receiver = self._agent.add_remote_agent(metadata)
        self._cases = cases
        self._prepared = [self._prepare(case) for case in cases]

    def _prepare(self, case: dict[str, Any]) -> list[Any]:
        """Handles of as many transfers as may be in flight."""
        handles = []
        for i in range(IN_FLIGHT):
            offsets = case["offsets"][i % len(case["offsets"])]
            sides = []
            places = ("", self._pool.ctypes.data), (self._receiver, self._address)
            for agent, base in places:
                parts = [(base + at, case["chunk_bytes"], 0) for at in offsets]
                sides.append(self._agent.prep_xfer_dlist(agent, parts, "DRAM"))
            indices = np.arange(len(offsets), dtype=np.int32)
            handles.append(
                self._agent.make_prepped_xfer("WRITE", sides[0], indices, sides[1], indices, b"x")
            )
        return handles

    def run(self, number: int, count: int) -> float | str:
        """Seconds until the receiver knows of the last."""
        handles = self._prepared[number]
        self._peer.send((number, count))
        self._peer.recv()
        began = time.monotonic_ns()
        pending: list[Any] = []
        for i in range(count):
            if len(pending) == IN_FLIGHT:
                self._wait(pending.pop(0))
            pending.append(handles[i % IN_FLIGHT])
            if self._agent.transfer(pending[-1]) == "ERR":
                return "a transfer could not be posted"
        for handle in pending:
            self._wait(handle)
        ended, checksum = self._peer.recv()
        if count == 1 and checksum != self._checksum(number):
            return "the receiver has other bytes"
        return float(ended - began) / 1e9

    def _wait(self, handle: Any) -> None:
        give_up_at = time.monotonic() + LIMIT_S
        while (state := self._agent.check_xfer_state(handle)) != "DONE":
            if state == "ERR" or time.monotonic() > give_up_at:
                raise RuntimeError(f"a transfer ended as {state}")

    def _checksum(self, number: int) -> int:
        return checksum_of(self._pool, self._cases[number])


def checksum_of(pool: np.ndarray, case: dict[str, Any]) -> int:
    found = 0
    for at in case["offsets"][0]:
        found = zlib.crc32(pool[at : at + case["chunk_bytes"]].data, found)
    return found


def receive(peer: Connection, pool_bytes: int, cases: list[dict[str, Any]]) -> None:
    """The receiving process: counts notifications, and says when the last was there."""
    agent, pool, _registered = open_agent("receiver", pool_bytes)
    agent.add_remote_agent(peer.recv())
    peer.send((agent.get_agent_metadata(), pool.ctypes.data))
    while (wish := peer.recv()) is not None:
        number, count = wish
        peer.send(None)
        seen, give_up_at = 0, time.monotonic() + LIMIT_S
        while seen < count and time.monotonic() < give_up_at:
            seen += sum(len(notes) for notes in agent.get_new_notifs().values())
        ended = time.monotonic_ns()
        peer.send((ended, checksum_of(pool, cases[number]) if count == 1 else 0))


if __name__ == "__main__":
    main()
