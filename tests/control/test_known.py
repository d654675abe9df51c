"""A scheduler that begins where another one was killed: the same tokens, whatever is left."""

from __future__ import annotations

import random

import pytest

from dvrt.control.events import Known, Reject, Restore, Submit
from dvrt.control.pipeline import PipelinePlan, PipelineShape, Purpose
from dvrt.control.scheduler import Limits, Scheduler
from dvrt.requests import Request, SamplingParams
from tests.control.cluster import VOCAB, Content, MiniCluster, MiniStage, expected_tokens

GENERATION = 1 << 40


class SecondLife(MiniCluster):
    """A cluster that begins with what an earlier one left: tokens, and logs by their sequence.

    With ``survivors`` the stages themselves live on, and say what they still hold.
    """

    def __init__(self, plans: list[PipelinePlan], seed: int, former: MiniCluster, left: str):
        super().__init__(plans, seed)
        limits = Limits(max_context=64, vocab_size=VOCAB, max_queue=0)
        self.scheduler = Scheduler(plans, limits, first_number=GENERATION)
        self.left: dict[tuple[int, int], dict[int, Content]] = {}
        for key, stage in former.stages.items():
            logs = {log.seq: stage.tokens(slot) for slot, log in stage.logs}
            self.left[key] = logs if left != "nothing" else {}
        if left == "stages":
            for key, stage in former.stages.items():
                self.adopt(key, stage)

    def adopt(self, key: tuple[int, int], former: MiniStage) -> None:
        stage = self.stages[key]
        for slot, log in former.logs:
            names = {"seq": log.seq, "epoch": log.epoch, "length": log.length}
            stage.logs.open(slot, **names)
            stage.write(slot, 0, former.tokens(slot))

    def restore(self, command: Restore) -> None:
        key = (command.pipeline, command.stage)
        for wanted in command.logs:
            where = (wanted.slot, wanted.seq, wanted.epoch)
            held = self.stages[key].held(wanted.slot, wanted.seq)
            kept = self.left.get(key, {}).get(wanted.seq, ())[: wanted.length]
            if held:
                self.stages[key].report(*where, min(held, wanted.length))
            elif kept:
                deliver = self.stages[key].receive
                self.send(
                    "files",
                    key,
                    lambda where=where, kept=kept, deliver=deliver: deliver(*where, 0, kept, True),
                )
            else:
                self.stages[key].report(*where, 0)


def make_plans(rng: random.Random, *, is_split: bool) -> list[PipelinePlan]:
    purposes = (Purpose.PROMPT, Purpose.TOKEN) if is_split else (Purpose.BOTH,)
    return [
        PipelinePlan(
            id=number,
            purpose=purpose,
            shape=PipelineShape(
                n_stages=rng.randint(1, 3),
                n_microbatches=3,
                batch_size=rng.randint(1, 3),
                chunk_tokens=4,
                chunks_per_step=2,
            ),
        )
        for number, purpose in enumerate(purposes)
    ]


def make_requests(rng: random.Random) -> list[Request]:
    return [
        Request(
            id=f"r{i}",
            prompt_ids=tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))),
            max_tokens=rng.randint(1, 12),
            sampling=SamplingParams(repetition_penalty=rng.choice((1.0, 1.2))),
            n=rng.choice((1, 1, 3)),
        )
        for i in range(rng.randint(1, 8))
    ]


def known_of(
    former: MiniCluster, request: Request, *, tells_seats: bool
) -> tuple[Known | None, ...]:
    """As a journal has it: one item a sample once the first tokens are drawn."""
    if not former.out[request.id, 0]:
        return ()
    sequences = former.scheduler.sequences_of(request.id)
    seats = {each.id: each.seat for each in former.scheduler._book}
    known: list[Known | None] = []
    for sample in range(request.n):
        if (request.id, sample) in former.ends:
            known.append(None)
            continue
        seq = sequences[sample]
        tokens = tuple(former.out[request.id, sample])
        known.append(Known(seq=seq, tokens=tokens, seat=seats[seq] if tells_seats else None))
    return tuple(known)


@pytest.mark.parametrize("seed", range(120))
def test_a_second_life_goes_on_with_the_same_tokens(seed: int) -> None:
    rng = random.Random(seed)
    left = ("nothing", "files", "stages")[seed % 3]
    plans = make_plans(rng, is_split=seed % 2 == 0)
    asked = make_requests(rng)
    first = MiniCluster(plans, seed)
    for request in asked:
        first.submit(request)
    for _ in range(rng.randrange(200)):
        first.turn()
    second = SecondLife(plans, seed + 1, first, left)
    for request in asked:
        known = known_of(first, request, tells_seats=left == "stages")
        if known and not any(known):
            continue
        for sample in range(request.n):
            second.out[request.id, sample] = list(first.out[request.id, sample])
        second.give(Submit(request=request, now=0.0, known=known, age_s=0.0))
    second.drain()
    for request in asked:
        for sample in range(request.n):
            tokens = second.out[request.id, sample] or first.out[request.id, sample]
            assert tokens == expected_tokens(request, sample), (request.id, sample)


def test_what_every_stage_still_holds_is_not_computed_again() -> None:
    rng = random.Random(3)
    plans = make_plans(rng, is_split=False)
    request = Request(id="r", prompt_ids=(1, 2, 3, 4, 5), max_tokens=20, sampling=SamplingParams())
    first = MiniCluster(plans, 1)
    first.submit(request)
    while len(first.out["r", 0]) < 10:
        first.turn()
    second = SecondLife(plans, 2, first, "stages")
    known = known_of(first, request, tells_seats=True)
    second.out["r", 0] = list(first.out["r", 0])
    second.give(Submit(request=request, now=0.0, known=known, age_s=1.0))
    second.drain()
    assert second.out["r", 0] == expected_tokens(request, 0)
    assert second.scheduler.statistics().recomputed_tokens == 0


def test_a_request_that_no_longer_fits_is_refused_and_its_age_counts() -> None:
    plans = make_plans(random.Random(1), is_split=False)
    scheduler = Scheduler(plans, Limits(max_context=8, vocab_size=VOCAB, max_queue=0))
    known = (Known(seq=5, tokens=(1,)),)
    prompt = {"prompt_ids": (1, 2), "sampling": SamplingParams()}
    wide = Request(id="wide", max_tokens=7, **prompt)
    submit = Submit(request=wide, now=0.0, known=known, age_s=1.0)
    assert isinstance(scheduler.handle(submit)[0], Reject)
    late = Request(id="late", max_tokens=5, deadline_s=10.0, **prompt)
    scheduler.handle(Submit(request=late, now=100.0, known=known, age_s=4.0))
    assert scheduler.next_deadline() == 106.0
