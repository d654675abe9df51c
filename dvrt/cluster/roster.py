"""The workers of a cluster: who joined, how they are reached, what they do, when they are silent.

Knows no pipelines; whoever does says what a worker's status is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from dvrt.actors.heartbeat import Heartbeat
from dvrt.actors.node import Node
from dvrt.actors.ref import ActorRef
from dvrt.actors.watches import Watch
from dvrt.cluster.topology import IDLE
from dvrt.errors import ActorError, OutOfMemory, TransportError
from dvrt.protocol.messages import Joined, StopWorker
from dvrt.results import WorkerStatus

LOST, ENDED = "lost", "ended"
MAX_GONE = 16
"""So many workers that are gone stay in the status."""

StatusCallback = Callable[[WorkerStatus, str], None]
LossCallback = Callable[[str, str, float], None]


@dataclass(slots=True, eq=False)
class Member:
    """A worker that has joined, as one mutable record."""

    host: ActorRef
    replica_actor: str
    archive_actor: str
    status: WorkerStatus
    heartbeat: Heartbeat | None = None
    limit_s: float = 0.0
    watches: dict[str, Watch] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.status.name

    @property
    def is_gone(self) -> bool:
        return self.status.state in (LOST, ENDED)


class Roster:
    """All workers that have joined, by name.

    ``on_status(status, reason)`` hears of every change, ``on_loss(worker, reason, silence_s)`` of
    workers that are out of reach: an actor of theirs ended, their link broke, or nothing was heard
    of them for the limit that ``listen`` gave.
    """

    def __init__(
        self, *, heartbeat_s: float, on_status: StatusCallback, on_loss: LossCallback
    ) -> None:
        self._heartbeat_s = heartbeat_s
        self._on_status, self._on_loss = on_status, on_loss
        self._members: dict[str, Member] = {}
        self._node: Node

    def open(self, node: Node) -> None:
        """Reach workers from this node."""
        self._node = node

    @property
    def living(self) -> list[Member]:
        return [member for member in self._members.values() if not member.is_gone]

    @property
    def replica_actors(self) -> dict[str, str]:
        """The replica actors of living workers."""
        return {member.name: member.replica_actor for member in self.living}

    @property
    def archive_actors(self) -> dict[str, str]:
        """The archives of living workers, where they have one that can be written to."""
        return {each.name: each.archive_actor for each in self.living if each.archive_actor}

    def has_holder(self, actor: str) -> bool:
        """Whether a living worker has this replica actor or archive."""
        return any(actor in (each.replica_actor, each.archive_actor) for each in self.living)

    def get(self, name: str) -> Member | None:
        """A living worker."""
        member = self._members.get(name)
        return None if member is None or member.is_gone else member

    def statuses(self, order: Iterable[str]) -> tuple[WorkerStatus, ...]:
        """Workers in this order, then the other living ones, then those that are gone."""
        names = dict.fromkeys(name for name in order if name in self._members)
        names |= dict.fromkeys(member.name for member in self.living)
        gone = [name for name in self._members if name not in names]
        return tuple(self._members[name].status for name in (*names, *gone))

    def join(self, joined: Joined) -> Member | None:
        """A worker is there; None for one whose name is taken."""
        if joined.worker in self._members:
            return None
        status = WorkerStatus(
            name=joined.worker,
            pid=joined.pid,
            role="spare",
            stage=None,
            layers=None,
            state=IDLE,
            device="",
        )
        member = Member(
            self._node.ref(joined.host_actor), joined.replica_actor, joined.archive_actor, status
        )
        self._members[joined.worker] = member
        self.watch(member, joined.host_actor)
        return member

    def watch(self, member: Member, actor: str) -> None:
        """The end of this actor is the worker's loss."""
        name = member.name
        watch = self._node.watch(
            self._node.ref(actor), lambda _, reason: self._on_loss(name, reason, 0.0)
        )
        member.watches[actor] = watch

    def forget(self, member: Member, actor: str) -> None:
        """This actor may end."""
        watch = member.watches.pop(actor, None)
        if watch is not None:
            watch.cancel()

    def listen(self, member: Member, limit_s: float) -> None:
        """From now on, silence for longer than ``limit_s`` is a loss."""
        if member.limit_s == limit_s:
            return
        member.limit_s = limit_s
        if member.heartbeat is not None:
            member.heartbeat.close()
        name = member.name
        member.heartbeat = Heartbeat(
            self._node,
            member.host.node_address,
            interval_s=self._heartbeat_s,
            limit_s=limit_s,
            on_silence=lambda s: self._on_loss(name, f"nothing was heard for {s:.2f} s", s),
        )

    def change(self, member: Member, reason: str = "", **changes: Any) -> None:
        """Something about a worker is new."""
        before, member.status = member.status, replace(member.status, **changes)
        if member.status != before:
            self._on_status(member.status, reason)

    def count(self, member: Member, **changes: Any) -> None:
        """Update a worker's counters; unlike ``change``, this tells nobody."""
        member.status = replace(member.status, **changes)

    def shut_out(self, member: Member, reason: str) -> None:
        """A worker is lost: nothing of it is heard any more, even if it comes back."""
        self._close(member)
        self.change(member, reason, state=LOST)
        self._node.fence(member.host.node_address, reason)
        gone = [each.name for each in self._members.values() if each.is_gone]
        for name in gone[:-MAX_GONE]:
            del self._members[name]

    def ended(self, name: str, reason: str) -> None:
        """A worker has ended as it should."""
        member = self.get(name)
        if member is not None:
            self._close(member)
            self.change(member, reason, state=ENDED)

    def close(self, reason: str) -> None:
        """Tell all workers to end, and let their leases run out."""
        for member in self.living:
            if member.heartbeat is not None:
                member.heartbeat.close()
            self.tell(member.host, StopWorker(reason=reason))

    def tell(self, ref: ActorRef | str, message: object) -> None:
        """Send without waiting; a worker that cannot be told is one that is being lost."""
        with suppress(ActorError, TransportError, OutOfMemory):
            to = self._node.ref(ref) if isinstance(ref, str) else ref
            to.tell_nowait(message)

    def _close(self, member: Member) -> None:
        if member.heartbeat is not None:
            member.heartbeat.close()
        for actor in list(member.watches):
            self.forget(member, actor)


def never_seen(worker: str) -> WorkerStatus:
    """A worker that was lost before it joined."""
    return WorkerStatus(
        name=worker, pid=0, role="stage", stage=None, layers=None, state=LOST, device=""
    )
