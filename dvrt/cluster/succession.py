"""What one life of the controller takes over from the one before, and leaves to the next.

Requests and their tokens by the journal, workers and their logs where those still live.
"""

from __future__ import annotations

from collections.abc import Sequence

from dvrt.cluster.crew import Crew
from dvrt.cluster.dispatch import Dispatcher
from dvrt.cluster.journal import Journal
from dvrt.cluster.keeping import Keeper
from dvrt.cluster.orphans import CrewBook, Inheritance, Orphan
from dvrt.cluster.plan import ClusterPlan
from dvrt.cluster.restoration import Restorer
from dvrt.cluster.roster import Member
from dvrt.cluster.topology import Seat
from dvrt.protocol.claims import CrewRecord


class Succession:
    """Between the lives of a controller that has a journal; without one, of no consequence.

    Numbers below ``first_number`` are those of earlier lives.
    """

    def __init__(self, plan: ClusterPlan, journal: Journal | None, *, reattach_s: float) -> None:
        self._plan, self._journal = plan, journal
        self.keeper = Keeper(journal, linger_s=reattach_s) if journal is not None else None
        self.first_number = journal.first_number if journal is not None else 0
        self.former: CrewRecord | None = None
        self.orphans: Sequence[Orphan] = ()
        self._inheritance = Inheritance(plan, ())
        self._book: CrewBook | None = None

    @property
    def is_journalled(self) -> bool:
        return self._journal is not None and not self._journal.is_off

    def keep_book(self, controller: str) -> None:
        """Write down from now on which workers there are; ``controller`` is its node's address."""
        if self._journal is not None:
            self._book = CrewBook(self._journal, controller)

    def take_in(self, former: CrewRecord, orphans: Sequence[Orphan]) -> None:
        """Before the start: these of the ``former`` life's workers go on in this one."""
        self.former, self.orphans = former, orphans
        self._inheritance = Inheritance(self._plan, orphans)

    def begin(self, crew: Crew, restorer: Restorer) -> str:
        """Follow the workers that were taken in, and read logs where they are; what this means, in
        words."""
        restorer.held = self._inheritance.held
        crew.recall(each.name for each in (self.former.members if self.former else ()))
        for orphan in self.orphans:
            crew.adopt(orphan.worker)
        names = ", ".join(orphan.name for orphan in self.orphans)
        return f"{names}, with the logs of {len(self._inheritance)} sequences" if names else ""

    def lost(self, seat: Seat) -> None:
        """The logs of this stage are gone."""
        self._inheritance.lose(seat.key)

    def resume(self, dispatcher: Dispatcher) -> None:
        """Go on with the requests of a former life, where their logs are if they still are."""
        if self._journal is None or self.keeper is None:
            return
        self.keeper.seat_of = self._inheritance.seat_of
        self._journal.remains = self.keeper.in_order(self._journal.remains)
        dispatcher.resume_from(self._journal)
        self._inheritance.clear()

    def note(self, living: Sequence[Member]) -> None:
        """These are the workers that there are now."""
        if self._book is not None:
            self._book.update(living)
