"""Neighbours that live and have lost the link between them: connected anew, up to a point."""

from __future__ import annotations

from dvrt.actors.alarms import Alarms
from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.overseer import Overseer
from dvrt.cluster.topology import Seat
from dvrt.protocol.messages import Connect, LinkCut

RELINK_S = 0.05
"""A link that breaks is made anew no sooner: a neighbour may be dead and not yet missed."""
PATIENCE = 8
"""The next time in a row it takes this many times as long: where dialling fails at once, too, a
network gets a moment to come back."""
MAX_CUTS = 3
"""After so many in a row one of the two is replaced."""


class Partings:
    """Counts the links that break between neighbours while their pipeline finishes no step.

    Nobody can tell which of the two the network has left: first the one that was not reached is
    replaced, next time the other, in turns. One that is gone already counts for nothing.
    """

    def __init__(self, overseer: Overseer, dispatcher: Dispatcher) -> None:
        self._overseer, self._dispatcher = overseer, dispatcher
        self._cuts: dict[tuple[int, int], int] = {}
        self._alarms: Alarms[Seat] = Alarms()
        self._is_closed = False

    def cut(self, message: LinkCut) -> None:
        """A stage does not reach the next one. If that one has been replaced, the stage knows by
        now, or will in a moment."""
        topology = self._overseer.topology
        seat = topology.seat(message.pipeline, message.stage)
        told = seat.told if seat is not None else None
        if self._is_closed or seat is None or told is None:
            return
        if told.next_actor != message.next_actor:
            return
        other = topology.seat(message.pipeline, message.stage + 1)
        if other is not None and other.is_live and self._is_enough(seat.key):
            self._replace(seat, other, message.reason)
        else:
            n_before = max(0, self._cuts.get(seat.key, 0) % MAX_CUTS - 1)
            pause_s = RELINK_S * PATIENCE**n_before
            self._alarms.set(seat, pause_s, self._relink, seat, told)

    def _replace(self, seat: Seat, other: Seat, why: str) -> None:
        gone, near = (other, seat) if self._cuts[seat.key] % (2 * MAX_CUTS) else (seat, other)
        reason = f"it and {near.owner} do not reach each other: {why}"
        self._overseer.lost(gone.owner, reason, 0.0)

    def _is_enough(self, key: tuple[int, int]) -> bool:
        """Whether one more cut is too many in a row."""
        self._cuts[key] = self._cuts.get(key, 0) + 1
        return self._cuts[key] % MAX_CUTS == 0

    def landed(self, pipeline: int) -> None:
        """A step has passed all stages of a pipeline."""
        for key in [key for key in self._cuts if key[0] == pipeline]:
            del self._cuts[key]

    def close(self) -> None:
        """Connect nobody any more."""
        self._is_closed = True
        self._alarms.close()

    def _relink(self, seat: Seat, told: Connect) -> None:
        """Have the stages connect again, unless this one was told of another neighbour meanwhile;
        the steps in flight are lost."""
        pipeline = seat.key[0]
        if seat.told is told and seat.is_live and self._dispatcher.steps_lost(pipeline):
            self._overseer.connect_again(pipeline)
