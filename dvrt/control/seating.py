"""Who gets which row: from the queue, from a sibling's log, from a pipeline that retires."""

from __future__ import annotations

from itertools import islice

from dvrt.control.book import Book
from dvrt.control.events import Command, Entered, Place, Restore, Wanted
from dvrt.control.fleet import Fleet
from dvrt.control.group import Group
from dvrt.control.pipeline import Pipeline, Purpose
from dvrt.control.sequence import Sequence


class Seating:
    """Fills the free rows of an idle microbatch."""

    def __init__(self, fleet: Fleet, book: Book) -> None:
        self._fleet = fleet
        self._book = book

    def fill(self, pipeline: Pipeline, microbatch: int, now: float) -> list[Command]:
        """Seat whom the microbatch may take; send away those that a retiring one should lose."""
        if not pipeline.is_whole:
            return []
        if pipeline.purpose is Purpose.PROMPT:
            self._find_targets(pipeline, microbatch)
        elif pipeline.is_retiring:
            self._send_away(pipeline, microbatch)
        return self._seat(pipeline, microbatch, now) if self._book.queue else []

    def entered(self, sequence: Sequence, place: Place, now: float) -> list[Command]:
        """Note where a request's first sample has come to, if that is news."""
        group = self._book.group_of(sequence)
        if sequence.sample or group.place is place:
            return []
        group.place = place
        return [Entered(request_id=group.request.id, place=place, now=now)]

    def return_to(self, sequence: Sequence, seat: tuple[int, int], now: float) -> list[Command]:
        """Have a kept sequence sit where it sat, if the row is free; else it waits in the queue."""
        pipeline = self._fleet.get(seat[0])
        if pipeline is None or not (pipeline.takes_tokens and pipeline.has_room(seat[1])):
            return []
        self._book.queue.remove(sequence)
        self._fleet.sit(sequence, pipeline, seat[1])
        return [*self._reclaim([sequence], pipeline), *self.entered(sequence, Place.TOKEN, now)]

    def _reclaim(self, kept: list[Sequence], pipeline: Pipeline) -> list[Command]:
        """Ask every stage for what is left of these logs."""
        stages = range(pipeline.shape.n_stages)
        for sequence in kept:
            sequence.expect({stage: self._fleet.next_epoch() for stage in stages})
        return [
            Restore(
                pipeline=pipeline.id,
                stage=stage,
                logs=tuple(wanted_of(sequence, sequence.awaits[stage]) for sequence in kept),
            )
            for stage in stages
            if kept
        ]

    def _seat(self, pipeline: Pipeline, microbatch: int, now: float) -> list[Command]:
        slots = pipeline.free_slots(microbatch)
        able = (s for s in self._book.queue if self._may_sit(s, pipeline))
        waiting = list(islice(able, pipeline.shape.n_slots))
        n_take = pipeline.may_take(microbatch, len(waiting))
        commands: list[Command] = []
        kept: list[Sequence] = []
        for slot, sequence in zip(slots[:n_take], waiting, strict=False):
            if sequence.is_kept:
                self._book.queue.remove(sequence)
                self._fleet.sit(sequence, pipeline, slot)
                kept.append(sequence)
                commands += self.entered(sequence, Place.TOKEN, now)
                continue
            holder = self._holder(self._book.group_of(sequence))
            if pipeline.purpose is Purpose.PROMPT and not self._fleet.set_aside(sequence):
                commands += self.entered(sequence, Place.SLOT, now)
                break
            self._book.queue.remove(sequence)
            source = holder.seat.slot if holder is not None and holder.seat is not None else None
            self._fleet.sit(sequence, pipeline, slot, source)
            commands += self.entered(sequence, Place.PROMPT, now)
        return commands + self._reclaim(kept, pipeline)

    def _may_sit(self, sequence: Sequence, pipeline: Pipeline) -> bool:
        """Where a sequence may sit: one whose log may be left from an earlier life, where tokens
        are made; a sample whose sibling holds the prompt, or will, in that one's pipeline; any
        other, where prompts are computed."""
        if sequence.is_kept:
            return pipeline.takes_tokens
        group = self._book.group_of(sequence)
        holder = self._holder(group)
        if holder is not None:
            return holder.seat is not None and holder.seat.pipeline == pipeline.id
        return pipeline.takes_prompts and not group.seated

    def _holder(self, group: Group) -> Sequence | None:
        """A sample in whose row all entries of the prompt are, where siblings can sit too."""
        for sequence in group.live.values():
            home = self._fleet.home_of(sequence)
            if home is None or home.purpose is Purpose.PROMPT:
                continue
            if sequence.is_settled:
                return sequence
        return None

    def _find_targets(self, pipeline: Pipeline, microbatch: int) -> None:
        """Prompts that lost the row set aside for them, by a lease or a retirement, get another."""
        for sequence in pipeline.sitting(microbatch):
            if sequence.target is None and not self._fleet.set_aside(sequence):
                return

    def _send_away(self, pipeline: Pipeline, microbatch: int) -> None:
        for sequence in pipeline.sitting(microbatch):
            stays = sequence.is_settled and sequence.target is None
            if stays and not self._fleet.set_aside(sequence):
                return


def wanted_of(sequence: Sequence, epoch: int) -> Wanted:
    """All of a log that finished steps account for, to come under the ticket ``epoch``."""
    assert sequence.seat is not None
    slot = sequence.seat.slot
    return Wanted(
        slot=slot, seq=sequence.id, epoch=epoch, length=sequence.n_done, firm=sequence.firm
    )
