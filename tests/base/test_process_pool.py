"""Processes of a pool: what they run, what they raise, and that none outlives its program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, CancelledError
from pathlib import Path

import pytest

from dvrt.process_pool import ProcessPool

ROOT = Path(__file__).parents[2]
PROGRAM = """
import time
from dvrt.process_pool import ProcessPool

if __name__ == "__main__":
    with ProcessPool(2) as pool:
        print(*(process.pid for process, _ in pool._all), flush=True)
        assert list(pool.map(abs, range(-4, 0))) == [4, 3, 2, 1]
        calls = [pool.submit(time.sleep, 60) for _ in range(3)]
        print("ready", flush=True)
        while True:  # a signal just before a sleep does not end it
            time.sleep(0.05)
"""
LIMIT_S = 10.0


def die(code: int) -> None:
    os._exit(code)


def fail(*words: str) -> None:
    raise ValueError(*words)


def test_calls_are_answered_in_their_order_and_errors_say_where() -> None:
    with ProcessPool(2) as pool:
        assert list(pool.map(pow, range(20), [2] * 20)) == [n * n for n in range(20)]
        assert pool.submit(os.getpid).result() in {process.pid for process, _ in pool._all}
        with pytest.raises(ValueError, match="so it is") as raised:
            pool.submit(fail, "so it is").result()
        assert "in fail" in "".join(raised.value.__notes__)
        assert pool.submit(abs, -1).result() == 1


def test_a_process_that_dies_breaks_its_calls_and_no_others() -> None:
    with ProcessPool(2) as pool:
        with pytest.raises(BrokenExecutor, match="ended before"):
            pool.submit(die, 3).result()
        assert pool.submit(abs, -1).result() == 1
        with pytest.raises(BrokenExecutor):
            pool.submit(abs, -1).result()


def test_after_an_error_nothing_is_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), ProcessPool(1) as pool:
        calls = [pool.submit(time.sleep, 60) for _ in range(2)]
        raise ZeroDivisionError
    assert time.monotonic() - began < LIMIT_S
    assert isinstance(calls[0].exception(), BrokenExecutor)
    with pytest.raises(CancelledError):
        calls[1].result()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_program_that_is_killed(number: signal.Signals) -> None:
    """Processes and semaphores that are left behind would be found by the house's fixture, too."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with program:
        assert program.stdout is not None
        pids = list(map(int, program.stdout.readline().split()))
        assert len(pids) == 2 and program.stdout.readline() == "ready\n"
        program.send_signal(number)
        program.wait(LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
