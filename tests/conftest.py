"""How this repository's tests run: coroutine tests, virtual time, and a house that stays clean.

``async def`` tests get a fresh event loop each: asyncio's, or the one that ``loop_kind`` names, or
virtual time where the test is marked ``virtual``. Async fixtures are not supported; use async
context managers. After every test nothing may be left of it (``house_is_clean``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    DVRT_TEST_HOUSE=str(os.getpid()),
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs here would inherit it

hypothesis.settings.register_profile(
    "house",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("house")

HOUSE_MARK = f"DVRT_TEST_HOUSE={os.getpid()}".encode()
GRACE_S = 2.0
HARMLESS_FILES = ("/dev/null", "/dev/urandom", "/dev/nvidia", "/dev/dri", "/proc/")
HARMLESS_THREADS = ("tqdm", "pytest_timeout", "execnet")

REPORT_S = 15.0

passed = pytest.StashKey[bool]()
limit = pytest.StashKey[float]()


def pytest_sessionstart() -> None:
    """The first uvloop of a process opens a pipe for signals, which stays; before any test here."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


# Coroutine tests


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Runs the coroutine test that asks for it once on each kind of event loop."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return str(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Give a coroutine test (hypothesis tests included) a loop; pytest then calls it as usual."""
    if not _is_coroutine_test(pyfuncitem):
        return
    given = getattr(pyfuncitem.obj, "hypothesis", None)
    if given is not None:
        given.inner_test = _synchronous(pyfuncitem, inspect.unwrap(given.inner_test))
    else:
        pyfuncitem.obj = _synchronous(pyfuncitem, pyfuncitem.obj)


def _is_coroutine_test(item: pytest.Function) -> bool:
    given = getattr(item.obj, "hypothesis", None)
    inner = item.obj if given is None else inspect.unwrap(given.inner_test)
    return inspect.iscoroutinefunction(inner)


def _synchronous(
    item: pytest.Function, test: Callable[..., Coroutine[Any, Any, None]]
) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        faults: list[str] = []
        with _nothing_blocks(item), asyncio.Runner(loop_factory=_loop_factory(item)) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: faults.append(_describe(context)))
            runner.run(_checked(test(*args, **kwargs), limit_s=item.stash.get(limit, None)))
        assert not faults, "the loop reported: " + "; ".join(faults)

    return run


def _loop_factory(item: pytest.Function) -> Callable[[], asyncio.AbstractEventLoop]:
    virtual = item.get_closest_marker("virtual")
    if virtual is not None:
        from dvrt.virtual import VirtualLoop

        return functools.partial(VirtualLoop, *virtual.args, **virtual.kwargs)
    if item.funcargs.get("loop_kind") == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def _set_limit(item: pytest.Function) -> None:
    """A coroutine test that hangs shows its tasks; pytest-timeout comes later, if at all.

    In virtual time a limit says nothing: there it is left to pytest-timeout.
    """
    marker = item.get_closest_marker("timeout")
    given = item.config.getoption("timeout") or item.config.getini("timeout") or 0
    limit_s = float(marker.args[0] if marker else given)
    if limit_s > 0 and item.get_closest_marker("virtual") is None:
        item.stash[limit] = limit_s
        item.add_marker(pytest.mark.timeout(limit_s + REPORT_S), append=False)


async def _checked(test: Awaitable[None], *, limit_s: float | None) -> None:
    """Run the test within its limit; whatever it leaves running is a failure of its own."""
    before = asyncio.all_tasks()
    try:
        async with asyncio.timeout(limit_s) as timeout:
            await test
    except TimeoutError:
        if timeout.expired():
            pytest.fail(f"still running after {limit_s:.0f} s; its tasks:\n{_stacks(before)}")
        raise
    deadline = asyncio.get_running_loop().time() + GRACE_S
    while left := asyncio.all_tasks() - before:
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"{len(left)} tasks left running:\n{_stacks(before)}")
        await asyncio.sleep(0.001)


def _stacks(others: set[asyncio.Task[Any]]) -> str:
    text = io.StringIO()
    for task in asyncio.all_tasks() - others:
        task.print_stack(file=text)
    return text.getvalue()


def _describe(context: dict[str, Any]) -> str:
    error = context.get("exception")
    trace = "".join(traceback.format_exception(error)) if error else ""
    return f"{context.get('message')} {trace}"


@functools.cache
def _blocking_calls() -> Any:
    """Detects blocking calls made by dvrt's own code on a loop's thread.

    Left out: locks, which asyncio's executor takes for moments and which patching makes slow.
    """
    import blockbuster

    guard = blockbuster.BlockBuster(scanned_modules=["dvrt"])
    for name in [name for name in guard.functions if name.startswith(("threading", "sqlite3"))]:
        del guard.functions[name]
    for name, file, functions in (
        ("os.read", "/subprocess.py", {"_execute_child"}),
        ("os.stat", "/inspect.py", {"getsourcefile", "getmodule"}),
        ("os.stat", "/linecache.py", {"updatecache", "checkcache"}),
        ("os.stat", "<frozen importlib._bootstrap_external>", {"_path_stat"}),
        ("os.listdir", "<frozen importlib._bootstrap_external>", {"_fill_cache"}),
    ):
        guard.functions[name].can_block_in(file, functions)
    return guard


@contextlib.contextmanager
def _nothing_blocks(item: pytest.Function) -> Iterator[None]:
    if item.get_closest_marker("may_block") is not None:
        yield
        return
    guard = _blocking_calls()
    guard.activate()
    try:
        yield
    finally:
        guard.deactivate()


# The house


@dataclass(frozen=True)
class House:
    """What exists beside the test: open files, threads, processes and shared memory."""

    files: frozenset[tuple[int, str]]
    threads: frozenset[threading.Thread]
    processes: frozenset[int]
    shared_memory: frozenset[str]

    @classmethod
    def look(cls) -> House:
        return cls(
            files=frozenset(_open_files()),
            threads=frozenset(threading.enumerate()),
            processes=frozenset(int(name) for name in os.listdir("/proc") if name.isdecimal()),
            shared_memory=frozenset(os.listdir("/dev/shm")),
        )

    def left_since(self, before: House) -> list[str]:
        """What is here now, was not before, and is this test process's doing; worded."""
        left = [f"file {fd} -> {target}" for fd, target in sorted(self.files - before.files)]
        left += [
            f"thread {thread.name}"
            for thread in self.threads - before.threads
            if not thread.name.startswith(HARMLESS_THREADS)
        ]
        left += [_describe_process(pid) for pid in self.ours_since(before)]
        left += [
            f"shared memory /dev/shm/{name}"
            for name in self.shared_memory - before.shared_memory
            if not _is_held_elsewhere(name)
        ]
        return left

    def ours_since(self, before: House) -> list[int]:
        """Processes that came since and descend from this one, orphans included."""
        return [pid for pid in sorted(self.processes - before.processes) if _is_ours(pid)]


def _open_files() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith(HARMLESS_FILES):
                yield int(name), target


def _is_ours(pid: int) -> bool:
    """A child of this process, or an heir of its environment.

    A process has no environment while it changes into another program (then it may be ours, and
    the next look tells), as a zombie and as a thread of the kernel (then it is not).
    """
    try:
        state, parent = _state_and_parent(pid)
        if parent == os.getpid():
            return True
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    if not environment:
        return state != "Z" and parent not in (0, 2)
    return HOUSE_MARK in environment.split(b"\0")


def _state_and_parent(pid: int) -> tuple[str, int]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1])


def _describe_process(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        state, _ = _state_and_parent(pid)
    except OSError:
        return f"process {pid}"
    return f"process {pid} (state {state}) {command[:200]}"


def _is_held_elsewhere(name: str) -> bool:
    """Whether some process outside this house maps the segment; others may be testing, too."""
    path = f"/dev/shm/{name}"
    for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdecimal()]:
        with contextlib.suppress(OSError):
            if path in Path(f"/proc/{pid}/maps").read_text() and pid != os.getpid():
                return not _is_ours(pid)
    return not Path(path).exists()


@pytest.fixture(autouse=True)
def house_is_clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a passed test that leaves a file, thread, process or shared-memory segment behind.

    Waits up to GRACE_S for what is just ending, then kills the processes that are left.
    """
    before = House.look()
    yield
    left = House.look().left_since(before)
    if left:
        gc.collect()
    deadline = time.monotonic() + GRACE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = House.look().left_since(before)
    for pid in House.look().ours_since(before):
        with contextlib.suppress(OSError):
            if not Path(f"/proc/{pid}/environ").read_bytes():
                continue  # between two programs: it may be another house's
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if left and request.node.stash.get(passed, False):
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[passed] = report.passed
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a device or a library that is not here are skipped; ``make gpu-check`` runs them."""
    missing: dict[str, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function) and _is_coroutine_test(item):
            _set_limit(item)
        for name, is_here in (("gpu", _has_gpu), ("ucx", _has_ucx)):
            if item.get_closest_marker(name) is None:
                continue
            if name not in missing:
                missing[name] = not is_here()
            if missing[name]:
                item.add_marker(pytest.mark.skip(reason=f"no {name} on this machine"))


def _has_gpu() -> bool:
    if not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def _has_ucx() -> bool:
    import importlib.util

    return sys.platform == "linux" and importlib.util.find_spec("ucxx") is not None
