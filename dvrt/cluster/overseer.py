"""The overseer: keeps every stage of every pipeline in the hands of a living worker.

What happens changes a worker's or a seat's state (see SeatState); ``_reconcile`` then does whatever
the states call for. Nothing here waits, and everything that is waited for has an alarm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dvrt.actors.alarms import Alarms
from dvrt.actors.cell import FAILED as ACTOR_FAILED
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.clock import Clock
from dvrt.cluster.crew import Crew, spawn_nobody
from dvrt.cluster.deaths import Deaths
from dvrt.cluster.orphans import Orphan
from dvrt.cluster.outlook import Outlook, Watchfulness
from dvrt.cluster.plan import PipelineLayout
from dvrt.cluster.roster import Member, Roster
from dvrt.cluster.topology import Seat, SeatState, Topology, described
from dvrt.errors import DvrtError, StageFailed
from dvrt.processes.worker import WorkerExit
from dvrt.processes.worker_process import FAILED as EXIT_FAILED
from dvrt.protocol.messages import CloseStage, Connected, DropReplicas, Joined, StageLoaded, WarmUp

CONNECT_LIMIT_S = 10.0
"""How long a stage may take to confirm what it was told of its neighbours."""


class Overseer:
    """Gives stages to workers as they join, and new workers to stages that have lost theirs."""

    topology: Topology
    _me: ActorRef

    def __init__(self, limits: Watchfulness, outlook: Outlook, clock: Clock) -> None:
        self._limits, self._outlook = limits, outlook
        self.roster = Roster(
            heartbeat_s=limits.heartbeat_s, on_status=outlook.status, on_loss=self.lost
        )
        self._crew = Crew(spawn_nobody, self.exited)
        self.n_lost, self.is_serving = 0, False
        self._deaths = Deaths(limits.max_deaths, clock)
        self._hires_spares = True
        self._expected: set[str] = set()
        self._vacancies: list[str] = []
        self._patience: Alarms[str] = Alarms()
        self._alarms: Alarms[Seat] = Alarms()
        self._suspicions: dict[str, str] = {}
        self._is_over = False

    # What the controller calls.

    def open(self, node: Node, me: ActorRef) -> None:
        """The controller's actor has its place."""
        self._me = me
        self.roster.open(node)
        self.topology = Topology(controller=str(me), n_replicas=self._limits.replicas)

    def start(
        self,
        layouts: Iterable[PipelineLayout],
        crew: Crew,
        *,
        n_external: int,
        orphans: Sequence[Orphan] = (),
    ) -> None:
        """Hire a worker for every stage but the last ``n_external``, for which others join, and but
        those that the ``orphans`` have."""
        self._crew = crew
        places = list(layouts)
        taken = {held.key: orphan.name for orphan in orphans for held in orphan.stages}
        keys = [(load.pipeline, load.stage) for layout in places for load in layout.loads]
        n_hired = len(keys) - n_external
        owners = [taken.get(key) or self._hire() for key in keys[:n_hired]]
        owners += [
            taken.get(key) or self._open_vacancy(f"place {i}", limited=False)
            for i, key in enumerate(keys[n_hired:])
        ]
        names = iter(owners)
        for layout in places:
            self.topology.add(layout, tuple(next(names) for _ in layout.loads))
        for orphan in orphans:
            self._take_in(orphan)
        self._keep_spares()
        self._reconcile()

    def _take_in(self, orphan: Orphan) -> None:
        """A worker of a former life of the controller is there, with its stages."""
        member = self.roster.join(orphan.joined)
        assert member is not None, f"there are two of {orphan.name}"
        self._expected.add(orphan.name)
        self.roster.listen(member, self._limits.silence_s)
        for held in orphan.stages:
            seat = self.topology.row(held.order.pipeline).seats[held.order.stage]
            seat.fill(held.loaded)
            self.roster.watch(member, held.loaded.actor)
        self._show(member)

    def join(self, joined: Joined) -> None:
        """A worker asks for work."""
        member = None if self._is_over else self.roster.join(joined)
        if member is None:
            return
        self._expected.add(member.name)
        self._patience.quiet(member.name)
        self.roster.listen(member, self._limits.silence_s)
        self._reconcile()
        if not self.topology.seats_of(member.name):
            self._outlook.status(member.status, "it waits to be needed")
            orders = tuple(seat.order for seat in self.topology.seats)
            self.roster.tell(member.host, WarmUp(orders=orders))

    def loaded(self, loaded: StageLoaded) -> None:
        """A stage has its weights; others can be told where it is."""
        seat = self.topology.seat(loaded.pipeline, loaded.stage)
        member = self.roster.get(loaded.worker)
        if seat is None or member is None or seat.owner != loaded.worker:
            return
        if seat.state is not SeatState.LOADING:
            return
        self._alarms.quiet(seat)
        seat.fill(loaded)
        self.roster.watch(member, loaded.actor)
        self._show(member)
        if seat.is_missed:
            self._outlook.replaced(seat)
        self._reconcile()

    def connected(self, connected: Connected) -> None:
        """A stage works by what it was told."""
        seat = self.topology.seat(connected.pipeline, connected.stage)
        if seat is None or seat.owner != connected.worker or not seat.unanswered:
            return
        seat.unanswered -= 1
        if not seat.unanswered:
            self._alarms.quiet(seat)
            self._reconcile()

    def add(self, layouts: Iterable[PipelineLayout], owners: Iterable[str]) -> None:
        """More pipelines, on these workers."""
        names = iter(owners)
        for layout in layouts:
            self.topology.add(layout, tuple(next(names) for _ in layout.loads))
        self._reconcile()

    def drop(self, pipeline: int, reason: str) -> None:
        """Close a pipeline; workers that are left without a stage wait as spares."""
        row = self.topology.drop(pipeline)
        for name in [each for each in self._vacancies if not self.topology.seats_of(each)]:
            self._vacancies.remove(name)
            self._patience.quiet(name)
        for seat in row.seats:
            self._alarms.quiet(seat)
            member = self.roster.get(seat.owner)
            if member is not None:
                self.roster.forget(member, seat.actor)
                close = CloseStage(pipeline=pipeline, stage=seat.order.stage, reason=reason)
                self.roster.tell(member.host, close)
                self._show(member)
        roster = self.roster
        for actor in (*roster.replica_actors.values(), *roster.archive_actors.values()):
            roster.tell(actor, DropReplicas(pipeline=pipeline))
        self._reconcile()

    @property
    def hired(self) -> list[Member]:
        """The living workers that this program has started, itself or in a former life."""
        return [each for each in self.roster.living if self._crew.was_hired(each.name)]

    def crew_for(self, n_workers: int) -> tuple[str, ...]:
        """So many workers: those with a stage, then those that wait, then new ones."""
        names = [name for name in self.topology.owners if self.roster.get(name)]
        names += [member.name for member in self._idle()]
        while len(names) < n_workers:
            names.append(self._hire())
        return tuple(names[:n_workers])

    def connect_again(self, pipeline: int) -> None:
        """Have every stage of a pipeline confirm once more what it was told."""
        seats = self.topology.row(pipeline).seats
        for seat in seats:
            seat.told = None
        if all(seat.is_live for seat in seats):  # a missing one's return connects them all
            self._reconcile()

    def archive_failed(self, name: str) -> None:
        """A worker's disk refuses: its stages are told to write there no more."""
        member = self.roster.get(name)
        if member is not None:
            member.archive_actor = ""
            self._reconcile()

    def exited(self, name: str, end: WorkerExit | DvrtError) -> None:
        """A hired worker has ended, or could not be started."""
        if self._is_over:
            self.roster.ended(name, str(end))
            return
        suspicion = self._suspicions.pop(name, "")
        has_failed = suspicion.startswith(ACTOR_FAILED)
        is_own_fault = has_failed or isinstance(end, DvrtError) or end.code == EXIT_FAILED
        reason = suspicion if has_failed else str(end)
        if is_own_fault and not self.is_serving:
            self._mark(name, reason, 0.0)
            self.give_up(StageFailed(name, reason))
        else:
            self._replace_lost(name, reason, 0.0)

    def lost(self, name: str, reason: str, silence_s: float) -> None:
        """A worker is out of reach, wherever that was seen first; later news change nothing.

        Before serving has begun there is no hurry, and how the process ended says more.
        """
        if not self.is_serving and name in self._crew and not self._is_over:
            self._suspicions.setdefault(name, reason)
            self._crew.kill(name)
        else:
            self._replace_lost(name, reason, silence_s)

    def close(self, reason: str) -> None:
        """Give no stage to anybody any more, and tell all workers to end."""
        self._end()
        self.roster.close(reason)

    # Losses.

    def _replace_lost(self, name: str, reason: str, silence_s: float) -> None:
        if self._is_over or name not in self._expected:
            return
        self._crew.kill(name)
        self._mark(name, reason, silence_s)
        seats = self.topology.seats_of(name)
        verdict = self._deaths.verdict(seats)
        if self.topology.given_up and seats:
            verdict = f"{verdict or 'it is not mended'}: another pipeline is given up"
        if verdict:
            self._lay_down(StageFailed(name, f"{reason}; {verdict}"), seats)
            return
        waits = self.is_serving and self._idle()  # before, spares take nobody's place
        if seats and self._crew.was_hired(name) and not waits:
            self._hand_over(name, self._hire(name))
        elif seats:
            self._hand_over(name, self._open_vacancy(f"the place of {name}", limited=True))
        self._reconcile()

    def _mark(self, name: str, reason: str, silence_s: float) -> None:
        """Write down that a worker is lost, and empty its seats."""
        self._expected.discard(name)
        self._patience.quiet(name)
        self.n_lost += 1
        seats = self.topology.seats_of(name)
        self._deaths.note(seats)
        for seat in seats:
            self._alarms.quiet(seat)
            seat.vacate()
        member = self.roster.get(name)
        if member is not None:
            self.roster.shut_out(member, reason)
        self._outlook.lost(seats, name, reason, silence_s)
        pipelines = {each.key[0] for each in seats}
        for seat in self.topology.seats:  # a void step may be on its way to any of them
            if seat.key[0] in pipelines:
                seat.told = None

    def _lay_down(self, error: StageFailed, seats: list[Seat]) -> None:
        """A place is given up. Without spares all goes on, and without the prompt stages what has
        its prompt; else nothing does."""
        pipelines = {seat.key[0] for seat in seats}
        if not seats:
            self._hires_spares = False
            self._outlook.degraded(None, error)
        elif pipelines <= self.topology.given_up:
            return
        elif self.is_serving and self.topology.can_spare(pipelines):
            self.topology.given_up |= pipelines
            self._outlook.degraded(min(pipelines), error)
            self._reconcile()
        else:
            self.give_up(error)

    def _hire(self, instead_of: str | None = None) -> str:
        name = self._crew.hire(instead_of)
        self._expected.add(name)
        limit_s = self._limits.start_limit_s
        reason = f"it did not join within {limit_s:g} s"
        self._patience.set(name, limit_s, self.lost, name, reason, 0.0)
        return name

    def _open_vacancy(self, name: str, *, limited: bool) -> str:
        """A stand-in for the name of a worker that is still to come."""
        self._vacancies.append(name)
        if limited:
            limit_s = self._limits.start_limit_s
            reason = f"nobody took it within {limit_s:g} s"
            error = StageFailed(name, reason, text=f"{name} stays empty: {reason}")
            self._patience.set(name, limit_s, self.give_up, error)
        return name

    def _hand_over(self, name: str, owner: str) -> None:
        for seat in self.topology.seats_of(name):
            seat.owner = owner

    def give_up(self, error: StageFailed) -> None:
        """Mend nothing any more: the cluster fails."""
        if not self._is_over:
            self._end()
            self._outlook.failed(error)

    def _end(self) -> None:
        self._is_over = True
        self._alarms.close()
        self._patience.close()
        self._vacancies.clear()

    # Doing what the states call for.

    def _reconcile(self) -> None:
        if self._is_over:
            return
        self._fill_vacancies()
        for seat in list(self.topology.seats):
            self._load(seat)
        replicas, archives = self.roster.replica_actors, self.roster.archive_actors
        for seat in list(self.topology.seats):
            self._connect(seat, replicas, archives)
        if not self.topology.is_settled:
            return
        for seat in list(self.topology.seats):
            self._welcome(seat)
        if self.topology.is_ready:
            self.is_serving = True
            self._keep_spares()
            self._outlook.settled()

    def _fill_vacancies(self) -> None:
        for member in self._idle():
            if self._vacancies and (self.is_serving or not self._crew.was_hired(member.name)):
                vacancy = self._vacancies.pop(0)
                self._patience.quiet(vacancy)
                self._hand_over(vacancy, member.name)

    def _load(self, seat: Seat) -> None:
        member = self.roster.get(seat.owner)
        if seat.state is not SeatState.EMPTY or member is None:
            return
        seat.state = SeatState.LOADING
        self.roster.listen(member, self._limits.lease_s)
        self._alarm(seat, self._limits.start_limit_s, "load its stage")
        self._show(member)
        self.roster.tell(member.host, replace(seat.order, controller=str(self._me)))

    def _connect(self, seat: Seat, replicas: dict[str, str], archives: dict[str, str]) -> None:
        wish = self.topology.wish(seat, replicas, archives) if seat.is_live else None
        if wish is not None and wish != seat.told:
            seat.connect(wish)
            self._alarm(seat, CONNECT_LIMIT_S, "confirm its neighbours")
            self.roster.tell(seat.actor, wish)

    def _welcome(self, seat: Seat) -> None:
        """A stage that is connected, and whose neighbours know it, is ready."""
        member = self.roster.get(seat.owner)
        if seat.state is not SeatState.LOADED or seat.told is None or member is None:
            return
        seat.state = SeatState.READY
        if all(each.state is SeatState.READY for each in self.topology.seats_of(seat.owner)):
            self.roster.listen(member, self._limits.silence_s)
        self._show(member)
        if seat.is_missed:
            seat.is_missed = False
            self._outlook.returned(seat)

    def _keep_spares(self) -> None:
        """Hire as many as are missing, once nothing is more urgent."""
        owners = set(self.topology.owners)
        waiting = [name for name in self._expected if name not in owners]
        for _ in range(self._limits.spares - len(waiting) if self._hires_spares else 0):
            self._hire()

    def _idle(self) -> list[Member]:
        owners = set(self.topology.owners)
        return [member for member in self.roster.living if member.name not in owners]

    def _alarm(self, seat: Seat, limit_s: float, what: str) -> None:
        reason = f"it did not {what} within {limit_s:g} s"
        self._alarms.set(seat, limit_s, self.lost, seat.owner, reason, 0.0)

    def _show(self, member: Member) -> None:
        """Let a worker's status say what it has."""
        self.roster.change(member, **described(self.topology.seats_of(member.name)))
