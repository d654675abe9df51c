"""Stages that live and have lost the link between them: connected anew, up to a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dvrt.actors.alarms import Alarms
from dvrt.clock import Clock
from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.overseer import Overseer
from dvrt.cluster.topology import Seat
from dvrt.protocol.messages import Connect, LinkCut, Unreached

RELINK_S = 0.05
"""A link that breaks is made anew no sooner: a neighbour may be dead and not yet missed. Each time
in a row it takes twice as long, up to ``LONGEST_PAUSE_S``."""
LONGEST_PAUSE_S = 1.0
PATIENCE_S = 10.0
MIN_CUTS = 3
"""After so long, and so many times in a row, a link is not made anew: one of the two goes."""
HELD_S = 13.0
"""A link that held for so long counts as sound, whether anything passed on it or not: what cannot
be passed on ends it sooner."""
TRIED_S = 60.0
"""What is shipped tries a link from time to time only; so long after it was missed last, that is
forgotten."""

Pair = tuple[tuple[int, int], tuple[int, int]]
"""Two stages: the one that did not reach the other comes first."""


@dataclass(slots=True)
class _Parting:
    """Two stages since their link broke first, with nothing that has passed it since; forgotten
    ``held_s`` after it broke last."""

    owners: tuple[str, str]
    since: float
    latest: float
    held_s: float
    n_cuts: int = 1

    @property
    def is_lasting(self) -> bool:
        return self.n_cuts >= MIN_CUTS and self.latest - self.since >= PATIENCE_S


class Partings:
    """Has neighbours connect again; in the end replaces one of two that do not reach each other.

    So it is with a stage that ships logs to one of another pipeline: it dials anew for each log.
    Nobody can tell which of them the network has left. The one that is parted from more others goes
    first, else the one that was not reached; where that did not help it is the other, in turns.
    One that is gone already is the overseer's business.
    """

    def __init__(self, overseer: Overseer, dispatcher: Dispatcher, clock: Clock) -> None:
        self._overseer, self._dispatcher, self._clock = overseer, dispatcher, clock
        self._open: dict[Pair, _Parting] = {}
        self._blamed_far: dict[Pair, bool] = {}
        self._alarms: Alarms[tuple[int, int]] = Alarms()
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
        pause_s = RELINK_S
        if other is not None and other.is_live:
            parting = self._note(seat, other, HELD_S)
            if parting.is_lasting:
                self._replace(seat, other, message.reason)
                return
            pause_s = min(RELINK_S * 2 ** (parting.n_cuts - 1), LONGEST_PAUSE_S)
        self._alarms.set(seat.key, pause_s, self._relink, seat, told)

    def unreached(self, message: Unreached) -> None:
        """A stage does not reach one of another pipeline, to which it was to send a log."""
        topology = self._overseer.topology
        seat = topology.seat(message.pipeline, message.stage)
        other = next((each for each in topology.seats if each.actor == message.actor), None)
        if self._is_closed or seat is None or other is None or seat.owner == other.owner:
            return
        if seat.is_live and other.is_live and self._note(seat, other, TRIED_S).is_lasting:
            self._replace(seat, other, message.reason)

    def stepped(self, pipeline: int) -> None:
        """A step that counts has passed all stages of a pipeline."""
        if self._open or self._blamed_far:
            self._forget(lambda near, far: near[0] == far[0] == pipeline)

    def arrived(self, seat: Seat, pipeline: int) -> None:
        """All of a log has come to a stage, from all those of a pipeline that had a part of it."""
        self._forget(lambda near, far: far == seat.key and near[0] == pipeline != far[0])

    def retired(self, pipeline: int) -> None:
        """A pipeline is no more."""
        self._forget(lambda near, far: pipeline in (near[0], far[0]))

    def close(self) -> None:
        """Connect nobody any more."""
        self._is_closed = True
        self._alarms.close()

    def _forget(self, covers: Callable[[tuple[int, int], tuple[int, int]], bool]) -> None:
        for kept in (self._open, self._blamed_far):
            for pair in [pair for pair in kept if covers(*pair)]:
                del kept[pair]

    def _note(self, seat: Seat, other: Seat, held_s: float) -> _Parting:
        now, owners, pair = self._clock.time(), (seat.owner, other.owner), (seat.key, other.key)
        known = self._open.get(pair)
        if known is None or known.owners != owners or now - known.latest > held_s:
            known = self._open[pair] = _Parting(owners, now, now, held_s)
        else:
            known.latest = now
            known.n_cuts += 1
        return known

    def _replace(self, seat: Seat, other: Seat, why: str) -> None:
        pair = (seat.key, other.key)
        is_far = self._blamed_far[pair] = self._is_far_next(pair, seat, other)
        del self._open[pair]
        gone, near = (other, seat) if is_far else (seat, other)
        reason = f"it and {near.owner} do not reach each other: {why}"
        self._overseer.lost(gone.owner, reason, 0.0)

    def _is_far_next(self, pair: Pair, seat: Seat, other: Seat) -> bool:
        """Whether it is the farther one that goes."""
        if pair in self._blamed_far:
            return not self._blamed_far[pair]
        is_far = self._n_partings(other) >= self._n_partings(seat)
        key = other.key if is_far else seat.key
        has_gone = any(key == each[is_far] for each, is_far in self._blamed_far.items())
        return is_far != has_gone

    def _n_partings(self, seat: Seat) -> int:
        """From how many of those that are there a worker is parted."""
        others: set[str] = set()
        for pair, parting in self._open.items():
            if seat.owner in parting.owners and self._is_current(pair, parting):
                others.update(parting.owners)
        return len(others)

    def _is_current(self, pair: Pair, parting: _Parting) -> bool:
        seats = [self._overseer.topology.seat(*key) for key in pair]
        owners = tuple(seat.owner for seat in seats if seat is not None)
        age_s = self._clock.time() - parting.latest
        return owners == parting.owners and age_s <= parting.held_s

    def _relink(self, seat: Seat, told: Connect) -> None:
        """Have the stages connect again, unless this one has another neighbour meanwhile; the steps
        in flight are lost, even if the stage was told something else in between."""
        self._alarms.quiet(seat.key)
        is_here = self._overseer.topology.seat(*seat.key) is seat and seat.is_live
        if is_here and seat.told is not None and seat.told.next_actor == told.next_actor:
            self._dispatcher.steps_lost(seat.key[0])
            self._overseer.connect_again(seat.key[0])
