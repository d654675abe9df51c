"""The runtime's scheduler, and how to tell it of many steps at once between its decisions.

A step is quiet when what follows from its end is known before it: the same rows once more.
"""

from __future__ import annotations

from dvrt.control.pipeline import Purpose
from dvrt.control.scheduler import Scheduler
from dvrt.control.steps import Step


class LeapingScheduler(Scheduler):
    """``Scheduler`` with some questions and one statement more; all decisions are its own."""

    @property
    def n_queued(self) -> int:
        return len(self._book.queue)

    def slot_of(self, request_id: str) -> int:
        """The row that a request's first sample sits in."""
        seat = self._book.groups[request_id].live[0].seat
        assert seat is not None
        return seat.slot

    def quiet_steps(self, step: Step) -> tuple[int, bool]:
        """How often this step, just launched, can end without a decision; and if rows are free.

        Each of these ends draws one token for each row, none of which is its sequence's last one.
        Holds as long as nobody comes to the microbatch: from the queue, if rows are free and
        someone waits there, or because a log arrives.
        """
        pipeline = self._fleet[step.pipeline]
        has_room = pipeline.purpose is Purpose.BOTH and bool(pipeline.free_slots(step.microbatch))
        if step.chunks or step.ships or not step.decodes or pipeline.purpose is Purpose.PROMPT:
            return 0, has_room
        left: list[int] = []
        for sequence in pipeline.sitting(step.microbatch):
            if sequence.is_in_prompt or sequence.awaits or sequence.n_logged < len(sequence.tokens):
                return 0, has_room
            left.append(sequence.request.max_tokens - sequence.n_generated)
        is_plain = len(left) == len(step.decodes)
        return (min(left) - 1 if is_plain else 0), has_room

    def leap(self, step: Step, n_steps: int, *, is_ending: bool) -> None:
        """``step``, in flight, stands for that many ends before its own, all of them quiet.

        ``is_ending`` says that its own end is told next.
        """
        for decode in step.decodes:
            sequence = self._book.get(decode.seq, decode.epoch)
            if sequence is not None:
                sequence.tokens += [0] * n_steps
                sequence.n_logged += n_steps
                sequence.n_done += n_steps + is_ending
