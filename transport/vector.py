"""A list of buffers that is moved piece by piece, front to back."""

from __future__ import annotations

from collections.abc import Iterable


class Vector:
    """What of some buffers is still to be moved; ``nbytes`` of it."""

    __slots__ = ("_buffers", "_index", "nbytes")

    def __init__(self, buffers: Iterable[memoryview] = ()) -> None:
        self._buffers = [buffer for buffer in buffers if buffer.nbytes]
        self._index = 0
        self.nbytes = sum([buffer.nbytes for buffer in self._buffers])

    def next(self, count: int) -> list[memoryview]:
        """The next ``count`` buffers, or all that are left."""
        return self._buffers[self._index : self._index + count]

    def advance(self, nbytes: int) -> None:
        """Note that the first ``nbytes`` were moved."""
        self.nbytes -= nbytes
        while nbytes:
            buffer = self._buffers[self._index]
            if nbytes < buffer.nbytes:
                self._buffers[self._index] = buffer[nbytes:]
                return
            nbytes -= buffer.nbytes
            self._index += 1

    def take(self, nbytes: int) -> list[memoryview]:
        """The buffers of the next ``nbytes``, the last one cut to fit; they count as moved."""
        first, left = self._index, nbytes
        while left and left >= self._buffers[self._index].nbytes:
            left -= self._buffers[self._index].nbytes
            self._index += 1
        taken = self._buffers[first : self._index]
        if left:
            buffer = self._buffers[self._index]
            taken.append(buffer[:left])
            self._buffers[self._index] = buffer[left:]
        self.nbytes -= nbytes
        return taken

    def clear(self) -> None:
        """Let go of all buffers."""
        self._buffers, self._index, self.nbytes = [], 0, 0
