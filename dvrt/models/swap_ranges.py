"""How far each slot's log reaches on the device and in the host's backing. Lengths, no bytes."""

from __future__ import annotations

from typing import NamedTuple


class Range(NamedTuple):
    """Positions [start, stop) of a slot's log, as of ``version``: a later one makes it void."""

    slot: int
    start: int
    stop: int
    version: int

    @property
    def n_tokens(self) -> int:
        return self.stop - self.start


class Ranges:
    """For each slot: [0, stored) is in the backing, [0, cached) in the frame of its microbatch.

    Entries never change within a version, so whichever of the two reaches farther is as true as
    the other; only [stored, cached) has to go out before the frame may be used otherwise.
    """

    def __init__(self, n_slots: int) -> None:
        self._stored = [0] * n_slots
        self._cached = [0] * n_slots
        self._versions = [0] * n_slots

    def stored(self, slot: int) -> int:
        return self._stored[slot]

    def cached(self, slot: int) -> int:
        return self._cached[slot]

    def lacks(self, slot: int, length: int) -> Range | None:
        """What of [0, length) is in the backing and not on the device."""
        start, stop = self._cached[slot], min(length, self._stored[slot])
        return Range(slot, start, stop, self._versions[slot]) if start < stop else None

    def owes(self, slot: int) -> Range | None:
        """What is on the device and not in the backing."""
        start, stop = self._stored[slot], self._cached[slot]
        return Range(slot, start, stop, self._versions[slot]) if start < stop else None

    def is_current(self, copied: Range) -> bool:
        return self._versions[copied.slot] == copied.version

    def is_owed(self, copied: Range) -> bool:
        """Whether this range still has to go out."""
        return self.is_current(copied) and copied.stop > self._stored[copied.slot]

    def came_in(self, copied: Range) -> None:
        """A range has been copied to the device; of an older version it does not count."""
        slot = copied.slot
        if self.is_current(copied) and copied.start <= self._cached[slot] < copied.stop:
            self._cached[slot] = copied.stop

    def went_out(self, copied: Range) -> None:
        slot = copied.slot
        if self.is_current(copied) and copied.start <= self._stored[slot] < copied.stop:
            self._stored[slot] = copied.stop

    def computed(self, slot: int, start: int, stop: int) -> None:
        """The device computes [start, stop); all that was known beyond ``start`` is forgotten."""
        if start < max(self._stored[slot], self._cached[slot]):
            self._versions[slot] += 1
            self._stored[slot] = min(self._stored[slot], start)
        self._cached[slot] = stop

    def written(self, slot: int, start: int, stop: int) -> None:
        """The backing was given [start, stop) of some layers; the device does not have them.

        A range counts whole with its first layer: nobody asks for it before all layers are there.
        """
        self._versions[slot] += 1
        self._cached[slot] = min(self._cached[slot], start)
        self._stored[slot] = max(self._stored[slot], stop)

    def replaced(self, slot: int, *, stored: int, cached: int) -> None:
        """The slot holds another log from now on."""
        self._versions[slot] += 1
        self._stored[slot], self._cached[slot] = stored, cached

    def dropped(self, slot: int) -> None:
        """The frame was given to another microbatch."""
        self._cached[slot] = 0
