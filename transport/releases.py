"""Letting go of a peer's extents in any order, while the peer hears of them in theirs. Pure."""

from __future__ import annotations


class Releases:
    """Numbers extents as they come and counts how many in a row, from the first, are free."""

    def __init__(self) -> None:
        self._next = 0
        self._in_a_row = 0
        self._early: set[int] = set()

    def take(self) -> int:
        """The number of an extent that has come."""
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> int:
        """Let go of an extent; how many more the peer may hear of now."""
        self._early.add(number)
        before = self._in_a_row
        while self._in_a_row in self._early:
            self._early.remove(self._in_a_row)
            self._in_a_row += 1
        return self._in_a_row - before
