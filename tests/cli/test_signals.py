"""SIGINT and SIGTERM at every moment of a command, once and twice: exit codes, nothing left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBERS = {"SIGINT": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143)}

COMMAND = """
import asyncio, subprocess, sys, time
from dvrt.cli.signals import exit_on_signals, run
from dvrt.errors import DvrtError

def say(word):
    print(word, flush=True)

async def cancellable(signals):
    say("ready")
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.01)
        say("cleaned")

async def failing(signals):
    say("ready")
    try:
        await asyncio.sleep(60)
    finally:
        raise DvrtError("the cancellation made something else fail")

async def serving(signals):
    with signals.instead() as told:
        say("ready")
        await told.wait()
    say("drained")
    return 0

async def stuck(signals):
    child = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"])
    while True:
        say("ready")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def blocked(signals):
    say("ready")
    time.sleep(0.5)
    await asyncio.sleep(60)

async def early(signals):
    return 0

exit_on_signals()
name, loop, limit_s = sys.argv[1:]
if name == "early":
    say("ready")
    time.sleep(60)
sys.exit(run(globals()[name], loop=loop, limit_s=float(limit_s)))
"""


class Command:
    """One command in a process of its own, ready for signals."""

    def __init__(self, name: str, loop: str = "asyncio", *, limit_s: float = 30.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, name, loop, str(limit_s)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Command:
        self.wait_word("ready")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate()

    def wait_word(self, word: str) -> None:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 20)[0], f"never said {word}"
        said = self.process.stdout.readline().strip()
        assert said == word, self.process.communicate(timeout=20)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_first_cancels_and_cleans_up(name: str, loop: str) -> None:
    number, code = NUMBERS[name]
    with Command("cancellable", loop) as command:
        command.process.send_signal(number)
        assert command.end() == (code, "cleaned\n", "")


@pytest.mark.parametrize("name", NUMBERS)
def test_before_the_loop_it_ends_at_once(name: str) -> None:
    number, code = NUMBERS[name]
    with Command("early") as command:
        command.process.send_signal(number)
        assert command.end() == (code, "", "")


def test_a_background_job_that_ignores_sigint_hears_it_all_the_same() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Command("cancellable") as command:
            command.process.send_signal(signal.SIGINT)
            assert command.end()[0] == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_that_was_told_to_stop_did_its_work(name: str, loop: str) -> None:
    with Command("serving", loop) as command:
        command.process.send_signal(NUMBERS[name][0])
        assert command.end() == (0, "drained\n", "")


def test_an_error_on_the_way_out_is_the_signals_end() -> None:
    with Command("failing") as command:
        command.process.send_signal(signal.SIGINT)
        assert command.end() == (130, "", "")


def test_a_blocked_loop_hears_the_signal_when_it_goes_on() -> None:
    with Command("blocked") as command:
        command.process.send_signal(signal.SIGINT)
        assert command.end()[0] == 130


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_second_kills_children_and_exits(name: str, loop: str) -> None:
    number, code = NUMBERS[name]
    with Command("stuck", loop) as command:
        command.process.send_signal(number)
        command.wait_word("ready")  # it swallowed the cancellation
        time.sleep(0.15)
        command.process.send_signal(number)
        assert command.end()[0] == code


def test_what_a_group_and_its_leader_both_get_counts_once() -> None:
    with Command("cancellable") as command:
        for _ in range(3):
            command.process.send_signal(signal.SIGTERM)
        assert command.end() == (143, "cleaned\n", "")


def test_an_end_without_end_is_forced() -> None:
    with Command("stuck", limit_s=0.2) as command:
        command.process.send_signal(signal.SIGTERM)
        command.wait_word("ready")
        assert command.end()[0] == 143


def test_descendants() -> None:
    from dvrt.cli.signals import descendants

    script = "import subprocess as s; s.Popen(['sleep', '60']); print(flush=True); s.os.wait()"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        found = descendants(os.getpid())
        assert found[0] == child.pid
        assert len(found) == 2
        assert descendants(child.pid) == found[1:]
        assert descendants(found[1]) == []
    finally:
        for pid in descendants(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        child.communicate()
