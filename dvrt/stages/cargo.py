"""What a stage ships, on its way from the compute to the event loop, as values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

PIECE_BYTES = 1 << 20
"""Entries travel in pieces of at most so much, but of one position at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """Entries [start, stop) of a log in ``slot``, in the layers [first, last), for slot ``target``
    of pipeline ``to``. ``packed`` are their bytes; without them they are packed when their turn
    comes, if the log is still there.
    """

    slot: int
    seq: int
    epoch: int
    to: int
    target: int
    first: int
    last: int
    start: int
    stop: int
    packed: Any = None

    def pieces(self, entry_bytes: int) -> Iterator[Cargo]:
        """The same in pieces; ``entry_bytes`` are those of one position in these layers."""
        step = max(1, PIECE_BYTES // entry_bytes)
        for start in range(self.start, self.stop, step):
            yield replace(self, start=start, stop=min(start + step, self.stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """All of [0, length) of a log has been given to the outlet for ``target`` of pipeline ``to``,
    for those layers [first, last) that this stage holds.
    """

    seq: int
    epoch: int
    to: int
    target: int
    first: int
    last: int
    length: int


class Outlet(Protocol):
    """Takes what is to be shipped, in order, on the compute; never blocks or raises."""

    def has_room(self, nbytes: int) -> bool:
        """Whether so many packed bytes may be given; else they are to be given unpacked."""
        ...

    def put(self, item: Cargo | Sealed) -> None: ...
