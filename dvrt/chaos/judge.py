"""The verdict: every answer against the undisturbed one, and the cluster after it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dvrt.chaos.schedule import Ask
from dvrt.chaos.traffic import Answer
from dvrt.observe.events import Record

WHOLE = ("eos", "stop", "length")
BREACHES = ("ProtocolError", "AssertionError", "KeyError", "IndexError", "ValueError", "TypeError")
"""A worker that was lost for one of these was not killed by a fault but by a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``faults`` says what was wrong, one line each; the rest are counts of the run.

    ``mix`` names what else was there, beside the faults that were ``injected``.
    """

    faults: tuple[str, ...] = ()
    n_asked: int = 0
    n_whole: int = 0
    n_lost: int = 0
    n_tokens: int = 0
    recomputed: int = 0
    restored: int = 0
    injected: tuple[str, ...] = ()
    mix: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        return not self.faults


def is_whole(answer: Answer) -> bool:
    return not answer.error and set(answer.ends) <= set(WHOLE)


def judge_answer(asked: Ask, answer: Answer, right: Answer) -> str:
    """What is wrong with an answer; empty if nothing is. Who leaves early sees a beginning."""
    if answer.error:
        return f"request {asked.number} was lost: {answer.error}"
    for sample, whole in enumerate(right.ids):
        ids, end = answer.ids[sample], answer.ends[sample]
        name = f"request {asked.number} sample {sample}"
        if ids != whole[: len(ids)]:
            return f"{name} has a wrong token at {_differs_at(ids, whole)}: {ids}, not {whole}"
        # What was held back comes with an untimely end: half a character, half a stop string.
        if not end and not right.texts[sample].startswith(answer.texts[sample]):
            return f"{name} has another text"
        if end in WHOLE or asked.is_patient:
            mine = (ids, answer.texts[sample], end)
            if mine != (whole, right.texts[sample], right.ends[sample]):
                return f"{name} ended with {end!r} after {len(ids)} tokens of {len(whole)}"
        elif end not in ("", "deadline", "cancelled"):
            return f"{name} ended with {end!r}"
    return ""


def judge_events(records: Iterable[Record]) -> list[str]:
    """Workers that ended by a mistake of theirs and not by a fault that was injected."""
    return [
        f"{record.subject} {record.state}: {record.reason}"
        for record in records
        if record.state in ("lost", "failed") and any(word in record.reason for word in BREACHES)
    ]


def judge_answers(
    asks: Iterable[Ask], answers: Iterable[Answer], right: Mapping[int, Answer]
) -> list[str]:
    pairs = zip(asks, answers, strict=True)
    judged = (judge_answer(asked, answer, right[asked.number]) for asked, answer in pairs)
    return [fault for fault in judged if fault]


def _differs_at(ids: tuple[int, ...], whole: tuple[int, ...]) -> int:
    pairs = enumerate(zip(ids, whole, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(whole)))
