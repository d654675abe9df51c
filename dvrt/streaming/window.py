"""How much may be under way: credits by bytes, acknowledged in any order. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dvrt.errors import ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowStatistics:
    limit_bytes: int
    in_flight_bytes: int
    in_flight: int
    sent: int


class Window:
    """Parcels are numbered as they are sent; each is in flight until it is acknowledged.

    A parcel larger than the window is let through alone: it delays, but never blocks for ever.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError(f"a window of {limit_bytes} bytes lets nothing through")
        self._limit = limit_bytes
        self._in_flight: dict[int, int] = {}
        self._bytes = 0
        self._next = 0

    def __repr__(self) -> str:
        return f"<Window {self._bytes} of {self._limit} bytes, {len(self._in_flight)} parcels>"

    def fits(self, nbytes: int) -> bool:
        return not self._in_flight or self._bytes + nbytes <= self._limit

    def send(self, nbytes: int) -> int:
        """Count a parcel as under way; its number. Raises ProtocolError where it does not fit."""
        if not self.fits(nbytes):
            raise ProtocolError(f"{nbytes} bytes do not fit {self!r}")
        sequence = self._next
        self._next += 1
        self._in_flight[sequence] = nbytes
        self._bytes += nbytes
        return sequence

    def acknowledge(self, sequence: int) -> None:
        """The peer is done with a parcel. Raises ProtocolError for one that is not under way."""
        if sequence not in self._in_flight:
            raise ProtocolError(f"parcel {sequence} is acknowledged but not under way")
        self._bytes -= self._in_flight.pop(sequence)

    @property
    def resume_point(self) -> int:
        """The first parcel that the peer may lack; everything before it is acknowledged."""
        return min(self._in_flight, default=self._next)

    def statistics(self) -> WindowStatistics:
        return WindowStatistics(
            limit_bytes=self._limit,
            in_flight_bytes=self._bytes,
            in_flight=len(self._in_flight),
            sent=self._next,
        )
