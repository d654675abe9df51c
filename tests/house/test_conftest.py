"""The rules of tests/conftest.py hold: leaks, hangs, blocking calls and lost errors fail a test."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

UNTIDY = """
import asyncio, os, subprocess, tempfile, threading, time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

kept = []
stop = threading.Event()
segment = Path(f"/dev/shm/dvrt-untidy-{os.getpid()}")

async def test_tidy(loop_kind):
    name = type(asyncio.get_running_loop()).__module__
    assert ("uvloop" in name) == (loop_kind == "uvloop")
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()

@hypothesis.given(st.integers())
async def test_hypothesis(loop_kind, number):
    name = type(asyncio.get_running_loop()).__module__
    assert ("uvloop" in name) == (loop_kind == "uvloop")

async def test_leaves_task(loop_kind):
    kept.append(asyncio.create_task(asyncio.sleep(1000), name="forgotten"))

async def test_loses_error(loop_kind):
    async def fail():
        raise ValueError("nobody looks at me")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    del task

@pytest.mark.timeout(1)
async def test_hangs(loop_kind):
    await asyncio.Event().wait()

async def test_blocks(loop_kind):
    from dvrt.block import nap
    nap()

@pytest.mark.may_block
async def test_may_block(loop_kind):
    from dvrt.block import nap
    nap()

async def test_test_code_may_block():
    time.sleep(0.001)

def test_leaves_file():
    kept.append(tempfile.TemporaryFile())

def test_leaves_process():
    kept.append(subprocess.Popen(["sleep", "1000"]))

def test_leaves_orphan():
    subprocess.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"], check=True)

def test_leaves_thread():
    kept.append(threading.Thread(target=stop.wait, name="forgotten", daemon=True))
    kept[-1].start()

def test_ends_thread():
    stop.set()

def test_leaves_shared_memory():
    segment.write_bytes(b"forgotten")

def test_frees_shared_memory():
    segment.unlink()

def test_fails_and_leaves_process():
    kept.append(subprocess.Popen(["sleep", "1000"]))
    raise AssertionError("only this is reported")

def test_end():
    for thing in kept:
        if isinstance(thing, subprocess.Popen):
            thing.wait()
        elif hasattr(thing, "close"):
            thing.close()
"""

FINE = [
    "test_tidy[asyncio]",
    "test_tidy[uvloop]",
    "test_hypothesis[asyncio]",
    "test_hypothesis[uvloop]",
    "test_may_block[asyncio]",
    "test_may_block[uvloop]",
    "test_test_code_may_block",
    "test_ends_thread",
    "test_frees_shared_memory",
    "test_end",
]
FAULTY = {
    "test_leaves_task[asyncio]": "1 tasks left running",
    "test_leaves_task[uvloop]": "1 tasks left running",
    "test_loses_error[asyncio]": "nobody looks at me",
    "test_loses_error[uvloop]": "nobody looks at me",
    "test_hangs[asyncio]": "still running after",
    "test_hangs[uvloop]": "still running after",
    "test_blocks[asyncio]": "Blocking call to time.sleep",
    "test_blocks[uvloop]": "Blocking call to time.sleep",
    "test_leaves_file": "left behind: file",
    "test_leaves_process": "left behind: process",
    "test_leaves_orphan": "left behind: process",
    "test_leaves_thread": "left behind: thread forgotten",
    "test_leaves_shared_memory": "left behind: shared memory /dev/shm/dvrt-untidy",
    "test_fails_and_leaves_process": "only this is reported",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each untidy test: the messages of its failures, empty for none."""
    folder = tmp_path_factory.mktemp("untidy")
    (folder / "tests").mkdir()
    (folder / "dvrt").mkdir()
    conftest = (ROOT / "tests/conftest.py").read_text()
    assert "GRACE_S = 2.0" in conftest
    (folder / "tests/conftest.py").write_text(conftest.replace("GRACE_S = 2.0", "GRACE_S = 0.1"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "dvrt/__init__.py").touch()
    (folder / "dvrt/block.py").write_text("import time\n\n\ndef nap():\n    time.sleep(0.001)\n")
    (folder / "tests/test_untidy.py").write_text(UNTIDY)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "--junit-xml=report.xml", "-q"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done.stdout + done.stderr
    return _outcomes((folder / "report.xml").read_text())


def _outcomes(report: str) -> dict[str, str]:
    import xml.etree.ElementTree as ElementTree

    found: dict[str, str] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        texts = [f"{item.get('message')} {item.text}" for item in case]
        name = str(case.get("name"))
        found[name] = " ".join([found.get(name, ""), *texts]).strip()
    return found


def test_every_untidy_test_is_known(outcomes: dict[str, str]) -> None:
    assert sorted(outcomes) == sorted([*FINE, *FAULTY])
    assert len(re.findall("(?m)^(?:async )?def test_", UNTIDY)) < len(outcomes)


@pytest.mark.parametrize("name", FINE)
def test_fine(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == ""


@pytest.mark.parametrize("name", FAULTY)
def test_faulty(outcomes: dict[str, str], name: str) -> None:
    assert FAULTY[name] in outcomes[name]


def test_a_failed_test_is_not_reported_twice(outcomes: dict[str, str]) -> None:
    assert "left behind" not in outcomes["test_fails_and_leaves_process"]
