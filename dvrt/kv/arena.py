"""Which slot of a memory is leased to whom: generations, quarantine and counts; no bytes here.

    free --lease--> leased --release--> free
                    leased --quarantine--> quarantined --settle--> free

A quarantined slot is nobody's: something may still write to it. It is leased again only after
``settle``, under a new generation, so whatever names the old lease is late and is refused.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dvrt.errors import OutOfMemory, StaleLease


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to use ``slot`` as long as its generation is ``generation``."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaStatistics:
    """How many slots are in which state, and what happened since the start."""

    slots: int
    free: int
    leased: int
    quarantined: int
    leases: int
    late: int


class Arena:
    """``n_slots`` slots of ``slot_bytes``. Leases are granted oldest-freed first."""

    def __init__(self, n_slots: int, *, slot_bytes: int, name: str = "arena") -> None:
        self._name = name
        self._slot_bytes = slot_bytes
        self._free = deque(range(n_slots))
        self._generations = [0] * n_slots
        self._leased: set[int] = set()
        self._quarantined: set[int] = set()
        self._leases = 0
        self._late = 0

    def __repr__(self) -> str:
        s = self.statistics()
        return f"<Arena {self._name} {s.free} free {s.leased} leased {s.quarantined} quarantined>"

    def lease(self) -> Lease:
        """A free slot under a new generation. Raises OutOfMemory."""
        if not self._free:
            raise OutOfMemory(self._name, needed_bytes=self._slot_bytes, free_bytes=0)
        slot = self._free.popleft()
        self._leased.add(slot)
        self._generations[slot] += 1
        self._leases += 1
        return Lease(slot=slot, generation=self._generations[slot])

    def offset(self, lease: Lease) -> int:
        """Where the slot begins in the memory. Raises StaleLease."""
        self.ensure_current(lease)
        return lease.slot * self._slot_bytes

    def is_current(self, lease: Lease) -> bool:
        return lease.slot in self._leased and self._generations[lease.slot] == lease.generation

    def ensure_current(self, lease: Lease) -> None:
        """Raise StaleLease, and count it, unless the lease still holds."""
        if not self.is_current(lease):
            self._late += 1
            raise StaleLease(f"{self._name}: {lease} is over")

    def release(self, lease: Lease) -> None:
        """Give the slot back; nobody else can touch it any more. Raises StaleLease."""
        self.ensure_current(lease)
        self._leased.discard(lease.slot)
        self._free.append(lease.slot)

    def quarantine(self, lease: Lease) -> None:
        """End the lease, but keep the slot: somebody may still write to it. Raises StaleLease."""
        self.ensure_current(lease)
        self._leased.discard(lease.slot)
        self._quarantined.add(lease.slot)

    def settle(self, lease: Lease) -> None:
        """The quarantined slot is quiet now. Raises StaleLease unless this lease put it there."""
        is_same = self._generations[lease.slot] == lease.generation
        if lease.slot not in self._quarantined or not is_same:
            raise StaleLease(f"{self._name}: {lease} is not in quarantine")
        self._quarantined.discard(lease.slot)
        self._free.append(lease.slot)

    def statistics(self) -> ArenaStatistics:
        return ArenaStatistics(
            slots=len(self._generations),
            free=len(self._free),
            leased=len(self._leased),
            quarantined=len(self._quarantined),
            leases=self._leases,
            late=self._late,
        )

    def check_integrity(self) -> None:
        """Every slot is in exactly one state; AssertionError otherwise."""
        states = [*self._free, *self._leased, *self._quarantined]
        assert sorted(states) == list(range(len(self._generations))), repr(self)
