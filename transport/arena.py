"""Shared memory of one direction: written by its owner, mapped read-only by the peer.

    page 0                          the rest
    [releases: u64 ...............][ extents, in the order of their allocation, going round ]

``releases`` counts the extents of the *peer's* arena that this side has let go, so that each side
writes into its own memory alone. The memory is a sealed memfd: it has no name, cannot shrink
under a reader, and is gone with its last holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections import deque

from dvrt.errors import ConfigError, Corrupted

PAGE_BYTES = mmap.PAGESIZE
ALIGNMENT = 64
WARM_BYTES = 8 << 20
"""Small messages go round in so much of the arena, which then stays in the caches."""
WARM_EXTENTS = 4
"""Larger ones go round in so many times their size, if that is enough."""
_F_SEAL_FUTURE_WRITE = 0x0010
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Arena:
    """This side's memory: extents are allocated and come back in order as the peer releases."""

    def __init__(self, capacity: int) -> None:
        if capacity <= 0 or capacity % ALIGNMENT:
            raise ConfigError(f"an arena of {capacity} bytes; expected a multiple of {ALIGNMENT}")
        self.capacity = capacity
        self.fd = os.memfd_create("dvrt-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, PAGE_BYTES + capacity)
            self._map = mmap.mmap(self.fd, PAGE_BYTES + capacity)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
        except BaseException:
            os.close(self.fd)
            raise
        whole = memoryview(self._map)
        self._releases = whole[:8].cast("Q")
        self.bytes = whole[PAGE_BYTES:]
        self._extents: deque[tuple[int, int]] = deque()
        self._head = 0
        self._reclaimed = 0

    def close_fd(self) -> None:
        """After the peer has the descriptor: the mapping needs it no more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        self.close_fd()
        self.bytes.release()
        self._releases.release()
        with contextlib.suppress(BufferError):
            self._map.close()

    def count_releases(self, count: int) -> None:
        """Tell the peer that so many more of its extents, in their order, are free."""
        self._releases[0] += count

    def reclaim(self, released: int) -> None:
        """Take back what the peer has released. Raises Corrupted for an impossible count."""
        count = released - self._reclaimed
        if not 0 <= count <= len(self._extents):
            at_most = self._reclaimed + len(self._extents)
            raise Corrupted(
                "releases of the arena", expected=f"{self._reclaimed} to {at_most}", got=released
            )
        for _ in range(count):
            self._extents.popleft()
        self._reclaimed = released

    def allocate(self, size: int) -> int | None:
        """The offset of a new extent, or None while there is no room in a row."""
        size = aligned(size)
        start = self._place(size)
        if start is not None:
            self._extents.append((start, size))
            self._head = start + size
        return start

    def _place(self, size: int) -> int | None:
        """Where there is room in a row, in the part that is warm if they can."""
        if not self._extents:
            return 0 if size <= self.capacity else None
        tail, end = self._extents[0][0], self._head + size
        if self._head <= tail:
            return self._head if end <= tail else None
        if end <= min(max(WARM_BYTES, WARM_EXTENTS * size), self.capacity):
            return self._head
        if size <= tail:
            return 0
        return self._head if end <= self.capacity else None


class PeerArena:
    """The other side's memory, mapped for reading."""

    def __init__(self, fd: int, capacity: int) -> None:
        """Maps ``fd``, which the caller closes. Raises Corrupted if it could change its size."""
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0
        if seals & _SEALS != _SEALS:
            raise Corrupted("seals of the peer's arena", expected=_SEALS, got=seals)
        if os.fstat(fd).st_size != PAGE_BYTES + capacity:
            raise Corrupted(
                "size of the peer's arena",
                expected=PAGE_BYTES + capacity,
                got=os.fstat(fd).st_size,
            )
        self.capacity = capacity
        self._map = mmap.mmap(fd, PAGE_BYTES + capacity, prot=mmap.PROT_READ)
        whole = memoryview(self._map)
        self._releases = whole[:8].cast("Q")
        self.bytes = whole[PAGE_BYTES:]

    @property
    def releases(self) -> int:
        """How many of our extents the peer has let go."""
        return int(self._releases[0])

    def extent(self, offset: int, size: int) -> memoryview:
        """The bytes of an extent. Raises Corrupted when it is not inside the arena."""
        if size <= 0 or offset < 0 or offset + size > self.capacity:
            raise Corrupted(
                "extent in the peer's arena", expected=f"within {self.capacity}", got=(offset, size)
            )
        return self.bytes[offset : offset + size]

    def close(self) -> None:
        """Unmap; memory that somebody still looks at stays until they let go."""
        self.bytes.release()
        self._releases.release()
        with contextlib.suppress(BufferError):
            self._map.close()
