"""The journal's file: one SQLite database of requests, their tokens and their ends.

Synchronous and for one thread at a time. A transaction is written before ``write`` returns, so the
death of the process loses nothing of it; that of the machine may lose the last ones.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dvrt.control.events import Emit, Known
from dvrt.errors import ConfigError, DvrtError
from dvrt.protocol.messages import GENERATION_BITS
from dvrt.requests import FinishReason, Request, SampledToken
from dvrt.wire import decode, encode, message

FORMAT = "dvrt journal 1"
"""Written into each new journal; a file with another one is refused."""

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE requests (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, asked BLOB NOT NULL, ended REAL
);
CREATE TABLE sequences (
    request INTEGER NOT NULL, sample INTEGER NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (request, sample)
) WITHOUT ROWID;
CREATE TABLE emits (
    number INTEGER PRIMARY KEY, request INTEGER NOT NULL, sample INTEGER NOT NULL,
    place INTEGER NOT NULL, token BLOB, finish TEXT, error TEXT
);
CREATE INDEX emits_of ON emits (request);
"""


@message("journal.asked")
class Asked:
    """A request as it was taken, at ``taken_at`` by the wall clock.

    ``stop`` are the strings that end its text, which concerns the engine alone.
    """

    request: Request
    taken_at: float
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one event adds: a request that was taken, or emits, with the ids of new sequences by
    (request, sample), and the requests that end with them; or ``facts`` by their names.
    """

    asked: Asked | None = None
    emits: tuple[Emit, ...] = ()
    sequences: Mapping[tuple[str, int], int] | None = None
    ended: tuple[str, ...] = ()
    now: float = 0.0
    facts: Mapping[str, bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A request and all that was emitted for it; ``seqs`` are its sequences' ids by sample."""

    asked: Asked
    emits: tuple[Emit, ...]
    seqs: Mapping[int, int]
    is_ended: bool

    def known(self) -> tuple[Known | None, ...]:
        """As Submit has it: empty before the first token, None for samples that have ended."""
        if not self.emits:
            return ()
        tokens: dict[int, list[int]] = {}
        ended: set[int] = set()
        for emit in self.emits:
            if emit.token is not None:
                tokens.setdefault(emit.sample, []).append(emit.token.id)
            if emit.finish is not None:
                ended.add(emit.sample)
        return tuple(
            None if n in ended else Known(seq=self.seqs[n], tokens=tuple(tokens[n]))
            for n in range(self.asked.request.n)
        )


class JournalStore:
    """An open journal, locked against all other processes until ``close`` or the end of this one.

    ``generation`` counts its openings. ``secret`` stays the same over all of them.
    """

    def __init__(self, path: Path, *, model: str) -> None:
        """Open or create. Raises ConfigError, which names the file, for what is no journal, is
        damaged, belongs to another ``model`` or is in use."""
        self._path = path
        self._numbers: dict[str, int] = {}
        with self._blamed():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
            self._db = sqlite3.connect(
                path, timeout=0.2, isolation_level=None, check_same_thread=False
            )
        try:
            with self._blamed():
                self._open(model)
        except BaseException:
            self._db.close()
            raise

    def _open(self, model: str) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # no life may begin twice, power or not
        with self._transaction():
            found = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not found:
                self._create(model)
            self._check(model)
            former = self.fact("generation")
            self.generation = 1 + (former if isinstance(former, int) else 0)
            self._put("generation", self.generation)
        self._db.execute("PRAGMA synchronous = NORMAL")
        secret = self.fact("secret")
        if not isinstance(secret, bytes):
            raise self._fault("it is damaged: its secret is missing")
        self.secret = secret

    def _create(self, model: str) -> None:
        for statement in filter(str.strip, _TABLES.split(";")):
            self._db.execute(statement)
        self._put("format", FORMAT)
        self._put("model", model)
        self._put("secret", secrets.token_bytes(32))

    def _check(self, model: str) -> None:
        names = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master")}
        if not {"facts", "requests", "sequences", "emits"} <= names:
            raise self._fault("it is a database of something else")
        found = self.fact("format")
        if found != FORMAT:
            raise self._fault(f"its format is {found!r}; this program writes {FORMAT!r}")
        kept = self.fact("model")
        if kept != model:
            raise self._fault(f"it belongs to {kept!r}, not to {model!r}")
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise self._fault(f"it is damaged: {verdict}")

    @property
    def first_number(self) -> int:
        """Above all ids of steps and sequences, and all epochs, of earlier lives."""
        return self.generation << GENERATION_BITS

    def fact(self, name: str) -> str | int | bytes | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        value: str | int | bytes | None = None if row is None else row[0]
        return value

    def remember(self, name: str, value: str | int | bytes) -> None:
        with self._blamed(), self._transaction():
            self._put(name, value)

    def write(self, entries: Iterable[Entry]) -> None:
        """Add these, all or none. Raises ConfigError naming the file, a full disk's too."""
        with self._blamed(), self._transaction():
            for entry in entries:
                self._add(entry)

    def unended(self) -> list[Story]:
        """Requests that have not ended, in the order in which they were taken."""
        with self._blamed():
            rows = self._db.execute(
                "SELECT number, asked FROM requests WHERE ended IS NULL ORDER BY number"
            ).fetchall()
            return [self._story(number, asked, is_ended=False) for number, asked in rows]

    def story(self, request_id: str) -> Story | None:
        with self._blamed():
            row = self._db.execute(
                "SELECT number, asked, ended FROM requests WHERE id = ?", (request_id,)
            ).fetchone()
            return None if row is None else self._story(row[0], row[1], is_ended=row[2] is not None)

    def prune(self, *, before: float, keep: int) -> int:
        """Forget requests that ended before then, and all but the ``keep`` latest; how many."""
        with self._blamed(), self._transaction():
            rows = self._db.execute(
                "SELECT number FROM requests WHERE ended < ? UNION SELECT number FROM (SELECT"
                " number FROM requests WHERE ended IS NOT NULL ORDER BY ended DESC, number DESC"
                " LIMIT -1 OFFSET ?)",
                (before, keep),
            ).fetchall()
            self._delete(rows)
            return len(rows)

    def close(self) -> None:
        """Harmless at any time; what was written stays."""
        with closing(self._db):
            pass

    def _add(self, entry: Entry) -> None:
        for name, value in (entry.facts or {}).items():
            self._put(name, value)
        if entry.asked is not None:
            request = entry.asked.request
            self._forget_ended(request.id)
            self._db.execute(
                "INSERT INTO requests (id, asked) VALUES (?, ?)", (request.id, encode(entry.asked))
            )
        numbers = {
            name: self._number(name)
            for name in {emit.request_id for emit in entry.emits} | set(entry.ended)
        }
        self._db.executemany(
            "INSERT OR REPLACE INTO sequences VALUES (?, ?, ?)",
            [(numbers[name], n, seq) for (name, n), seq in (entry.sequences or {}).items()],
        )
        self._db.executemany(
            "INSERT INTO emits (request, sample, place, token, finish, error)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [(numbers[emit.request_id], *_columns(emit)) for emit in entry.emits],
        )
        self._db.executemany(
            "UPDATE requests SET ended = ? WHERE number = ?",
            [(entry.now, numbers[name]) for name in entry.ended],
        )
        for name in entry.ended:
            self._numbers.pop(name, None)

    def _forget_ended(self, request_id: str) -> None:
        """Its id is given to a new request."""
        self._delete(
            self._db.execute(
                "SELECT number FROM requests WHERE id = ? AND ended IS NOT NULL", (request_id,)
            ).fetchall()
        )

    def _delete(self, numbers: list[tuple[int]]) -> None:
        for table, column in (
            ("emits", "request"),
            ("sequences", "request"),
            ("requests", "number"),
        ):
            self._db.executemany(f"DELETE FROM {table} WHERE {column} = ?", numbers)

    def _number(self, request_id: str) -> int | None:
        known = self._numbers.get(request_id)
        if known is not None:
            return known
        row = self._db.execute("SELECT number FROM requests WHERE id = ?", (request_id,)).fetchone()
        if row is None:
            return None
        number = self._numbers[request_id] = int(row[0])
        return number

    def _story(self, number: int, asked: bytes, *, is_ended: bool) -> Story:
        told = decode(asked)
        assert isinstance(told, Asked)
        rows = self._db.execute(
            "SELECT sample, place, token, finish, error FROM emits WHERE request = ?"
            " ORDER BY number",
            (number,),
        )
        emits = tuple(_emit(told.request.id, *row) for row in rows)
        seqs = self._db.execute("SELECT sample, seq FROM sequences WHERE request = ?", (number,))
        return Story(asked=told, emits=emits, seqs=dict(seqs), is_ended=is_ended)

    def _put(self, name: str, value: str | int | bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._numbers.clear()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Say which file it was."""
        try:
            yield
        except ConfigError:
            raise
        except OSError as error:
            raise self._fault(error.strerror or str(error)) from error
        except sqlite3.OperationalError as error:
            used = "another process uses it" if "locked" in str(error) else str(error)
            raise self._fault(used) from error
        except (sqlite3.Error, DvrtError, AssertionError, KeyError, ValueError) as error:
            raise self._fault(f"it is damaged: {error}") from error

    def _fault(self, reason: str) -> ConfigError:
        reason = " ".join(reason.split())
        return ConfigError(
            f"journal {self._path}: {reason}; give another file, or move this one away to begin"
            " without what it knows"
        )


def _columns(emit: Emit) -> tuple[int, int, bytes | None, str | None, str | None]:
    token = None if emit.token is None else encode(emit.token)
    finish = None if emit.finish is None else emit.finish.value
    return emit.sample, emit.index, token, finish, emit.error


def _emit(
    request_id: str,
    sample: int,
    index: int,
    token: bytes | None,
    finish: str | None,
    error: str | None,
) -> Emit:
    drawn = None if token is None else decode(token)
    assert drawn is None or isinstance(drawn, SampledToken)
    return Emit(
        request_id=request_id,
        sample=sample,
        index=index,
        token=drawn,
        finish=None if finish is None else FinishReason(finish),
        error=error,
    )
