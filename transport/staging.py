"""Bytes that were read before the call that wants them: frame heads and first region bytes."""

from __future__ import annotations

from dvrt.transport.base import Limits
from dvrt.transport.framing import PREFIX_BYTES, Prefix, unpack_body, unpack_prefix
from dvrt.transport.vector import Vector


class Staging:
    """A buffer that is filled at its end and emptied from its start.

    It grows beyond ``capacity`` only for a head that is longer, and only as that head's bytes
    really arrive, so a claimed length costs nothing.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._buffer = bytearray(capacity)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self.needed = PREFIX_BYTES
        """How many bytes must be here before ``head`` can say more."""

    def __len__(self) -> int:
        return self._end - self._start

    def room(self) -> memoryview:
        """Where the next bytes go; empty when what is here must be consumed first."""
        if self._end == len(self._buffer):
            self._make_room()
        return self._view[self._end :]

    def added(self, count: int) -> None:
        self._end += count

    def _make_room(self) -> None:
        held = len(self)
        if held == len(self._buffer) and held < self.needed:
            self._move_to(bytearray(min(2 * held, self.needed)))
        elif self._start:
            self._move_to(self._buffer)

    def _move_to(self, buffer: bytearray) -> None:
        held = len(self)
        buffer[:held] = bytes(self._view[self._start : self._end])
        self._buffer, self._view = buffer, memoryview(buffer)
        self._start, self._end = 0, held

    def head(self, limits: Limits) -> tuple[Prefix, bytes, tuple[int, ...]] | None:
        """Take the next head, or None until all of it is here. Raises Corrupted."""
        if len(self) < PREFIX_BYTES:
            self.needed = PREFIX_BYTES
            return None
        prefix = unpack_prefix(self._buffer, self._start, limits)
        total = PREFIX_BYTES + prefix.body_bytes
        if len(self) < total:
            self.needed = total
            return None
        header, sizes = unpack_body(prefix, self._view, self._start + PREFIX_BYTES, limits)
        self._consume(total)
        self.needed = PREFIX_BYTES
        return prefix, header, sizes

    def drain_into(self, targets: Vector) -> None:
        """Move what is here into ``targets``, as far as it goes."""
        while targets.nbytes and len(self):
            target = targets.next(1)[0]
            size = min(len(self), target.nbytes)
            target[:size] = self._view[self._start : self._start + size]
            self._consume(size)
            targets.advance(size)

    def take(self, count: int) -> bytearray:
        """The first ``count`` bytes, which are here."""
        taken = self._buffer[self._start : self._start + count]
        self._consume(count)
        return taken

    def _consume(self, count: int) -> None:
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._buffer) > self._capacity:
                self._buffer = bytearray(self._capacity)
                self._view = memoryview(self._buffer)
