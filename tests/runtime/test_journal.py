"""The journal's file: what was written is there again, what is damaged is refused by name."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dvrt.cluster.journal import Journal
from dvrt.cluster.journal_store import Asked, Entry, JournalStore
from dvrt.control.events import Emit, Known
from dvrt.errors import ConfigError
from dvrt.requests import FinishReason, Request, SampledToken, SamplingParams


def asked(name: str, n: int = 1) -> Asked:
    sampling = SamplingParams(temperature=0.7, seed=(1 << 64) - 1, logprobs=2)
    request = Request(id=name, prompt_ids=(1, 2, 3), max_tokens=9, sampling=sampling, n=n)
    return Asked(request=request, taken_at=12.5, stop=("END", "\n"))


def emit(name: str, index: int, sample: int = 0, finish: FinishReason | None = None) -> Emit:
    token = SampledToken(id=100 + index, logprob=-0.25, alternatives=((7, -0.5), (8, -1.5)))
    return Emit(request_id=name, sample=sample, index=index, token=token, finish=finish)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_a_story_comes_back_as_it_was(path: Path) -> None:
    store = JournalStore(path, model="m")
    store.write([Entry(asked=asked("a", n=2)), Entry(asked=asked("fresh"))])
    first = (emit("a", 0), emit("a", 0, sample=1, finish=FinishReason.EOS))
    store.write([Entry(emits=first, sequences={("a", 0): 5, ("a", 1): 6})])
    store.write([Entry(emits=(emit("a", 1),))])
    store.close()
    again = JournalStore(path, model="m")
    a, fresh = again.unended()
    again.close()
    assert a.asked == asked("a", n=2)
    assert a.emits == (*first, emit("a", 1))
    assert a.known() == (Known(seq=5, tokens=(100, 101)), None)
    assert fresh.known() == ()
    assert again.generation == store.generation + 1
    assert again.first_number > store.first_number + (1 << 39)
    assert again.secret == store.secret != b""


def test_only_the_owner_may_read_it(path: Path) -> None:
    path.touch(0o644)
    store = JournalStore(path, model="m")
    store.write([Entry(asked=asked("a"))])
    modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    store.close()
    assert set(modes.values()) == {0o600}, modes


def test_the_ended_are_kept_for_a_while(path: Path) -> None:
    store = JournalStore(path, model="m")
    for i in range(6):
        last = emit(f"r{i}", 0, finish=FinishReason.LENGTH)
        store.write([Entry(asked=asked(f"r{i}"))])
        sequences = {(f"r{i}", 0): i}
        store.write([Entry(emits=(last,), sequences=sequences, ended=(f"r{i}",), now=float(i))])
    store.write([Entry(asked=asked("running"))])
    assert store.prune(before=2.0, keep=3) == 3
    assert [store.story(f"r{i}") is not None for i in range(6)] == [False] * 3 + [True] * 3
    whole = store.story("r5")
    assert whole is not None
    assert whole.is_ended
    assert [story.asked.request.id for story in store.unended()] == ["running"]
    store.close()


def test_an_entry_is_written_whole_or_not_at_all(path: Path) -> None:
    store = JournalStore(path, model="m")
    store.write([Entry(asked=asked("a"))])
    with pytest.raises(ConfigError, match=r"journal\.db"):
        store.write([Entry(emits=(emit("a", 0),)), Entry(asked=asked("a"))])
    story = store.story("a")
    assert story is not None
    assert story.emits == ()
    store.close()


def test_another_models_journal_is_refused(path: Path) -> None:
    JournalStore(path, model="m").close()
    with pytest.raises(ConfigError, match="belongs to 'm', not to 'other'"):
        JournalStore(path, model="other")


def test_a_journal_in_use_is_refused(path: Path) -> None:
    store = JournalStore(path, model="m")
    with pytest.raises(ConfigError, match="another process uses it"):
        JournalStore(path, model="m")
    store.close()


@pytest.mark.parametrize("where", [0, 100, 4096 + 8, 4096 * 3 + 20])
def test_a_damaged_journal_is_refused(path: Path, where: int) -> None:
    store = JournalStore(path, model="m")
    for i in range(200):
        store.write([Entry(asked=asked(f"r{i}"))])
    store.close()
    data = bytearray(path.read_bytes())
    data[where : where + 64] = b"\xa5" * 64
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"journal .*journal\.db: .*give another file"):
        damaged = JournalStore(path, model="m")
        damaged.unended()
        damaged.close()


def test_what_is_no_journal_is_refused(path: Path) -> None:
    path.write_bytes(b"all of my notes\n" * 400)
    with pytest.raises(ConfigError, match="not a database"):
        JournalStore(path, model="m")
    assert path.read_bytes().startswith(b"all of my notes")
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()
    with pytest.raises(ConfigError, match="database of something else"):
        JournalStore(path, model="m")
    with pytest.raises(ConfigError, match="No such file or directory"):
        JournalStore(path.parent / "nowhere" / "journal.db", model="m")


def test_what_was_written_survives_the_kill(path: Path) -> None:
    program = f"""
        import sys
        from pathlib import Path
        from dvrt.cluster.journal_store import Entry, JournalStore
        from tests.runtime.test_journal import asked, emit
        store = JournalStore(Path({str(path)!r}), model="m")
        store.write([Entry(asked=asked("a"))])
        for index in range(10_000):
            store.write([Entry(emits=(emit("a", index),), sequences={{("a", 0): 1}})])
            print(index, flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        for _ in range(40):
            seen = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        seen = max([seen, *(int(line) for line in child.stdout.read().split())])
    store = JournalStore(path, model="m")
    (story,) = store.unended()
    store.close()
    assert len(story.emits) in (seen + 1, seen + 2)
    assert [each.index for each in story.emits] == list(range(len(story.emits)))


async def test_entries_are_there_when_their_callers_hear_of_it(path: Path) -> None:
    journal = await Journal.open(path, model="m")
    loop = asyncio.get_running_loop()
    heard: list[asyncio.Future[int]] = [loop.create_future() for _ in range(50)]
    journal.taken(asked("a"))
    for index, future in enumerate(heard):
        entry = Entry(emits=(emit("a", index),), sequences={("a", 0): 3})
        journal.write(entry, lambda future=future, index=index: future.set_result(index))
    await heard[-1]
    assert [future.result() for future in heard] == list(range(50))
    story = await journal.story("a")
    assert story is not None
    assert len(story.emits) == 50
    assert journal.statistics.transactions < 10
    assert not journal.statistics.waiting
    await journal.aclose()


async def test_a_full_disk_turns_the_journal_off_and_nothing_waits(path: Path) -> None:
    journal = await Journal.open(path, model="m")
    reasons: list[str] = []
    journal.on_failure = reasons.append
    done = asyncio.Event()
    journal.write(Entry(asked=asked("a")), done.set)
    await done.wait()
    done.clear()
    with file_size_limit(path.with_name("journal.db-wal").stat().st_size + 20_000):
        for index in range(400):
            journal.write(Entry(emits=(emit("a", index),), sequences={("a", 0): 3}))
            await asyncio.sleep(0)
        journal.write(Entry(), done.set)
        await done.wait()
    assert len(reasons) == 1
    assert "journal.db" in reasons[0]
    assert journal.is_off
    assert await journal.story("a") is None
    await journal.aclose()
    again = JournalStore(path, model="m")
    (story,) = again.unended()
    again.close()
    assert [each.index for each in story.emits] == list(range(len(story.emits)))


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """As if the disk were full there: writes beyond fail with EFBIG in place of a signal."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
