"""The files of one stage's logs: records appended, found again, and removed when nobody needs them.

Blocking; for one thread at a time. Files are those of ``dvrt.transport.file``, whose channel does
the appending: a torn end is noticed and left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from dvrt.errors import Corrupted, WireError
from dvrt.protocol.messages import LogRange, Replicate
from dvrt.stages.log_index import LogIndex, Piece
from dvrt.transport.records import Record, check_record, read_record
from dvrt.wire import decode

SUFFIX = ".log"


class LogFiles:
    """All files of one stage in ``directory``, those of earlier lives included."""

    def __init__(self, directory: Path) -> None:
        """Create the directory if need be, and look through what is there. Raises OSError."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        self.index = LogIndex()
        self.entry_bytes = 0
        self.sizes: dict[int, int] = {}
        for number in sorted(_numbers(directory)):
            self._scan(number)
        self.index.begin_life()

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def next_number(self) -> int:
        return max(self.sizes, default=-1) + 1

    def path(self, number: int) -> Path:
        return self.directory / f"{number:08}{SUFFIX}"

    def note(self, replicate: Replicate, nbytes: int, *, file: int, record: int) -> list[LogRange]:
        """A record was written, or found; the ranges of it that do not join what is there.

        Raises Corrupted for a record whose numbers cannot be.
        """
        count = sum([each.stop - each.start for each in replicate.ranges])
        entry_bytes = nbytes // count if count else self.entry_bytes
        if count * entry_bytes != nbytes or (self.entry_bytes and self.entry_bytes != entry_bytes):
            raise Corrupted("bytes of an entry", expected=self.entry_bytes, got=entry_bytes)
        self.entry_bytes = entry_bytes
        missing, at = [], 0
        for each in replicate.ranges:
            place = {"file": file, "record": record, "at": at, "entry_bytes": entry_bytes}
            if not self.index.add(each, pipeline=replicate.pipeline, **place):
                missing.append(each)
            at += (each.stop - each.start) * entry_bytes
        return missing

    def read(self, seq: int, length: int) -> bytearray:
        """The first ``length`` entries of a log, or as many as are here and sound."""
        data, checked = bytearray(), dict[tuple[int, int], Record]()
        for piece in self.index.pieces(seq, length, self.entry_bytes):
            try:
                data += self._read(piece, checked)
            except (OSError, Corrupted):
                break
        return data

    def remove_unneeded(self, *, current: int) -> None:
        """Remove files that nothing is wanted of any more, but not the one being written."""
        for number in set(self.sizes) - self.index.files - {current}:
            self.path(number).unlink(missing_ok=True)
            del self.sizes[number]

    def _scan(self, number: int) -> None:
        """What a file holds, up to where it is torn; bytes are checked when they are read."""
        fd = os.open(self.path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = self.sizes[number] = os.fstat(fd).st_size
            position = 0
            while (record := read_record(fd, position, size)) is not None:
                replicate = decode(record.header)
                if isinstance(replicate, Replicate):
                    self.note(replicate, sum(record.sizes), file=number, record=position)
                position = record.end
        except (Corrupted, WireError):
            return
        finally:
            os.close(fd)

    def _read(self, piece: Piece, checked: dict[tuple[int, int], Record]) -> bytes:
        fd = os.open(self.path(piece.file), os.O_RDONLY | os.O_CLOEXEC)
        try:
            record = checked.get((piece.file, piece.record))
            if record is None:
                record = read_record(fd, piece.record, os.fstat(fd).st_size)
                if record is None:
                    raise Corrupted("record", expected=piece.record, got="the end of the file")
                check_record(fd, piece.record, record)
                checked[piece.file, piece.record] = record
            size = (piece.stop - piece.start) * self.entry_bytes
            data = os.pread(fd, size, record.regions_at + piece.at)
            if len(data) != size:
                raise Corrupted("entries", expected=size, got=len(data))
            return data
        finally:
            os.close(fd)


def _numbers(directory: Path) -> Iterable[int]:
    stems = (path.stem for path in directory.glob(f"*{SUFFIX}"))
    return [int(stem) for stem in stems if stem.isdecimal()]
