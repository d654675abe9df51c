"""The workers that a killed controller has left: written down by one life, claimed by the next.

The next life listens at the former one's address, so that nobody has to be told where it is, and
calls every worker that the journal names. It takes in those that hold what it has a place for;
the others end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dvrt.actors.node import Node
from dvrt.cluster.journal import Journal
from dvrt.cluster.journal_store import Entry
from dvrt.cluster.plan import ClusterPlan
from dvrt.cluster.roster import Member
from dvrt.control.events import Restore, Wanted
from dvrt.control.pipeline import Purpose
from dvrt.errors import DvrtError, WireError
from dvrt.processes.worker import Worker, WorkerNursery
from dvrt.processes.worker_process import WorkerBoot, terms_of
from dvrt.protocol.claims import (
    CUSTODIAN,
    Claim,
    CrewMember,
    CrewRecord,
    Dismiss,
    HeldStage,
    Holdings,
)
from dvrt.protocol.messages import Joined, LoadStage
from dvrt.wire import decode, encode

CREW = "crew"
"""The journal's name for the record of workers."""
CLAIM_LIMIT_S = 12.0
"""How long a worker may take to answer; one that computes finishes its step first."""
DISMISS_LIMIT_S = 2.0
_log = logging.getLogger("dvrt.cluster")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A worker of a former life that is taken in."""

    joined: Joined
    worker: Worker
    stages: tuple[HeldStage, ...]

    @property
    def name(self) -> str:
        return self.joined.worker


class CrewBook:
    """Keeps the journal's record of the workers that this life has, one write for each change."""

    def __init__(self, journal: Journal, controller: str) -> None:
        """``controller`` is its node's address."""
        self._journal, self._controller = journal, controller
        self._written: CrewRecord | None = None

    def update(self, living: Iterable[Member]) -> None:
        members = [CrewMember(name=each.name, address=each.host.node_address) for each in living]
        record = CrewRecord(controller=self._controller, members=tuple(members))
        if record != self._written:
            self._written = record
            self._journal.write(Entry(facts={CREW: encode(record)}))


async def recall_crew(journal: Journal) -> CrewRecord | None:
    """The record that an earlier life has left, if it had workers that may live."""
    data = await journal.recall(CREW)
    if not isinstance(data, bytes):
        return None
    try:
        record = decode(data)
    except WireError:  # another version's
        return None
    return record if isinstance(record, CrewRecord) and record.members else None


class Claimant:
    """Calls the workers of a former life on behalf of this one."""

    def __init__(self, node: Node, journal: Journal, record: CrewRecord) -> None:
        self._node, self._journal, self._record = node, journal, record

    @property
    def is_at_home(self) -> bool:
        """Whether this life is where its workers look for it."""
        return self._node.address == self._record.controller

    async def claim(
        self, plan: ClusterPlan, nursery: WorkerNursery, boot: WorkerBoot
    ) -> tuple[Orphan, ...]:
        """Take in all that fit ``plan`` and have a boot like this one; the rest are told to end."""
        members = self._record.members
        answers = await asyncio.gather(*(self._ask(each) for each in members))
        places, terms = Places(plan), terms_of(boot)
        orphans: list[Orphan] = []
        unfit: list[tuple[CrewMember, str]] = []
        for member, answer in zip(members, answers, strict=True):
            if answer is None:
                unfit.append((member, "it did not answer in time"))
                continue
            why = places.objection(answer, terms)
            if not why:
                try:
                    orphans.append(await _taken_in(answer, nursery))
                    continue
                except DvrtError as error:
                    why = str(error)
                    places.give_back(answer)
            unfit.append((member, why))
        await asyncio.gather(*(self._dismiss(member, why) for member, why in unfit))
        return tuple(orphans)

    async def dismiss_all(self, reason: str) -> None:
        """Tell all of them to end."""
        await asyncio.gather(*(self._dismiss(each, reason) for each in self._record.members))

    async def _ask(self, member: CrewMember) -> Holdings | None:
        claim = Claim(generation=self._journal.generation, below=self._journal.first_number)
        custodian = self._node.ref(f"{member.address}/{CUSTODIAN}")
        try:
            answer = await custodian.ask(claim, deadline_s=CLAIM_LIMIT_S)
        except DvrtError as error:
            _log.info("worker %s of an earlier life does not answer: %s", member.name, error)
            return None
        return answer if isinstance(answer, Holdings) else None

    async def _dismiss(self, member: CrewMember, reason: str) -> None:
        dismiss = Dismiss(generation=self._journal.generation, reason=reason)
        custodian = self._node.ref(f"{member.address}/{CUSTODIAN}")
        try:
            await custodian.ask(dismiss, deadline_s=DISMISS_LIMIT_S)
        except DvrtError:  # it is gone, or ends when its grace does
            return
        _log.warning("worker %s of an earlier life is not needed: %s", member.name, reason)


class Places:
    """The stages of a plan that nobody of the former life has been given yet."""

    def __init__(self, plan: ClusterPlan) -> None:
        self._free = [_bare(load) for layout in plan.layouts for load in layout.loads]

    def objection(self, holdings: Holdings, terms: bytes) -> str:
        """Why a worker cannot be taken in; empty if it can, and then its places are taken."""
        if holdings.terms != terms:
            return "it works by other options"
        if not holdings.surveyed.is_whole:
            return "it was still loading a stage"
        orders = [_bare(each.order) for each in holdings.surveyed.stages]
        free = list(self._free)
        for order in orders:
            if order not in free:
                return f"nobody needs its stage {order.stage} of pipeline {order.pipeline}"
            free.remove(order)
        self._free = free
        return ""

    def give_back(self, holdings: Holdings) -> None:
        self._free += [_bare(each.order) for each in holdings.surveyed.stages]


class Inheritance:
    """The logs that the stages of the former life still have, until the first steps run."""

    def __init__(self, plan: ClusterPlan, orphans: Sequence[Orphan]) -> None:
        self._purposes = {layout.plan.id: layout.plan.purpose for layout in plan.layouts}
        self._lengths: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
        self._seats: dict[int, tuple[int, tuple[int, int]]] = {}
        for orphan in orphans:
            for held in orphan.stages:
                self._note(held)

    def __len__(self) -> int:
        """How many sequences have a log where tokens are made."""
        return len(self._seats)

    def seat_of(self, seq: int) -> tuple[int, int] | None:
        """The pipeline and the slot where a sequence's newest log is."""
        found = self._seats.get(seq)
        return None if found is None else found[1]

    def held(self, command: Restore) -> dict[Wanted, int]:
        """Of these logs, those that the stage has itself, and how much of what is wanted."""
        lengths = self._lengths.get((command.pipeline, command.stage), {})
        found: dict[Wanted, int] = {}
        for log in command.logs:
            is_newest = self.seat_of(log.seq) == (command.pipeline, log.slot)
            length = lengths.get((log.slot, log.seq), 0) if is_newest else 0
            if length:
                found[log] = min(length, log.length)
        return found

    def lose(self, key: tuple[int, int]) -> None:
        """A stage is gone."""
        self._lengths.pop(key, None)

    def clear(self) -> None:
        """From now on slots get other logs."""
        self._lengths.clear()
        self._seats.clear()

    def _note(self, held: HeldStage) -> None:
        pipeline, stage = held.order.pipeline, held.order.stage
        self._lengths[pipeline, stage] = {(log.slot, log.seq): log.stop for log in held.logs}
        if self._purposes[pipeline] is Purpose.PROMPT:
            return
        for log in held.logs:
            found = (log.epoch, (pipeline, log.slot))
            self._seats[log.seq] = max(found, self._seats.get(log.seq, found))


async def _taken_in(holdings: Holdings, nursery: WorkerNursery) -> Orphan:
    joined = holdings.joined
    worker = await nursery.adopt(joined.worker, joined.pid, holdings.started)
    return Orphan(joined=joined, worker=worker, stages=holdings.surveyed.stages)


def _bare(order: LoadStage) -> LoadStage:
    """What is to be loaded, whoever ordered it and whether it is traced."""
    return replace(order, controller="", is_traced=False)
