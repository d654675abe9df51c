"""The scheduler against a pipeline that is a dict: every rule, every token, every row."""

from __future__ import annotations

import random
from collections import defaultdict, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.control.events import (
    Cancel,
    Emit,
    Entered,
    Place,
    Reject,
    RunStep,
    StageLost,
    StepFinished,
    Submit,
    Tick,
)
from dvrt.control.pipeline import PipelinePlan, PipelineShape, Purpose
from dvrt.control.scheduler import Limits, Scheduler
from dvrt.control.steps import Chunk, Decode, DrawFailed, Step, StepDone
from dvrt.errors import Overloaded
from dvrt.kv.log import LogTable
from dvrt.requests import FinishReason, Request, SampledToken, SamplingParams
from tests.control.cluster import VOCAB, expected_tokens, next_token

EOS = 7
GREEDY = SamplingParams(temperature=0.0)


def make_request(name: str, n_prompt: int = 5, max_tokens: int = 4, **changes: object) -> Request:
    prompt = tuple((len(name) * 3 + i) % VOCAB for i in range(n_prompt))
    fields = {"id": name, "prompt_ids": prompt, "max_tokens": max_tokens, "sampling": GREEDY}
    return Request(**(fields | changes))


class DictPipeline:
    """Keeps the tokens of every log, checks every step as a stage does, draws from the hash."""

    def __init__(self, shape: PipelineShape, max_context: int) -> None:
        self.shape = shape
        self.logs = LogTable(shape.n_slots, max_context)
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.samples: dict[int, int] = {}
        self.flying: deque[Step] = deque()

    def run(self, step: Step) -> StepDone:
        for item in step.opens:
            self.logs.open(item.slot, seq=item.seq, epoch=item.epoch)
            self.tokens[item.slot], self.samples[item.slot] = [], item.sample
        for adopt in step.adopts:
            log = self.logs.get(adopt.slot)
            assert log is not None
            assert log.seq == adopt.seq
            names = {"seq": adopt.seq, "epoch": adopt.epoch, "length": adopt.n_tokens}
            self.logs.truncate(adopt.slot, **names)
            self.tokens[adopt.slot] = self.tokens[adopt.slot][: adopt.n_tokens]
            self.samples[adopt.slot] = adopt.sample
        for fork in step.forks:
            self.logs.fork(
                fork.source, fork.target, seq=fork.seq, epoch=fork.epoch, length=fork.n_tokens
            )
            self.tokens[fork.target] = self.tokens[fork.source][: fork.n_tokens]
            self.samples[fork.target] = fork.sample
        decoded = [self.decode(item) for item in step.decodes]
        firsts = [self.chunk(item) for item in step.chunks]
        return StepDone(
            id=step.id,
            microbatch=step.microbatch,
            decoded=tuple(token for token in decoded if token is not None),
            firsts=tuple(tokens for tokens in firsts if tokens),
        )

    def decode(self, item: Decode) -> SampledToken | None:
        self.logs.extend(
            item.slot, seq=item.seq, epoch=item.epoch, start=item.position, stop=item.position + 1
        )
        self.tokens[item.slot].append(item.token)
        context = tuple(self.tokens[item.slot])
        drawn = SampledToken(id=next_token(context, self.samples[item.slot]))
        return drawn if item.draw else None

    def chunk(self, item: Chunk) -> tuple[SampledToken, ...]:
        self.logs.extend(
            item.slot, seq=item.seq, epoch=item.epoch, start=item.start, stop=item.stop
        )
        assert item.start % self.shape.chunk_tokens == 0
        self.tokens[item.slot] += item.tokens
        context = tuple(self.tokens[item.slot])
        return tuple(SampledToken(id=next_token(context, sample)) for sample in item.draws)


class Bench:
    """A scheduler, its pipeline, and what came out for every sample."""

    def __init__(
        self, shape: PipelineShape, *, max_queue: int = 100, max_context: int = 64
    ) -> None:
        limits = Limits(max_context=max_context, vocab_size=VOCAB, max_queue=max_queue)
        self.scheduler = Scheduler([PipelinePlan(id=0, purpose=Purpose.BOTH, shape=shape)], limits)
        self.pipeline = DictPipeline(shape, max_context)
        self.out: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.ends: dict[tuple[str, int], FinishReason] = {}
        self.rejects: dict[str, Exception] = {}
        self.admitted: list[str] = []
        self.now = 0.0

    def give(self, event: object) -> None:
        for command in self.scheduler.handle(event):
            match command:
                case RunStep(step=step):
                    self.pipeline.flying.append(step)
                case Reject():
                    self.rejects[command.request_id] = command.error
                case Entered(place=Place.PROMPT):
                    self.admitted.append(command.request_id)
                case Emit():
                    self.take(command)
        self.scheduler.check_integrity()

    def take(self, emit: Emit) -> None:
        key = (emit.request_id, emit.sample)
        assert key not in self.ends, "a token after the end"
        if emit.token is not None:
            assert emit.index == len(self.out[key])
            self.out[key].append(emit.token.id)
        if emit.finish is not None:
            self.ends[key] = emit.finish

    def turn(self) -> None:
        """The oldest step in flight comes out; first in, first out, as in a real pipeline."""
        self.now += 1.0
        step = self.pipeline.flying.popleft()
        self.give(StepFinished(done=self.pipeline.run(step), now=self.now))

    def drain(self) -> None:
        for _ in range(100_000):
            if not self.pipeline.flying:
                break
            self.turn()
        assert self.scheduler.statistics().n_requests == 0, repr(self.scheduler)


def shape_of(**changes: int) -> PipelineShape:
    fields = {
        "n_stages": 2,
        "n_microbatches": 3,
        "batch_size": 2,
        "chunk_tokens": 4,
        "chunks_per_step": 2,
    }
    return PipelineShape(**(fields | changes))


requests = st.lists(
    st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 4), st.booleans()),
    min_size=1,
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(
    wishes=requests,
    shape=st.builds(
        shape_of,
        n_stages=st.integers(1, 4),
        n_microbatches=st.integers(1, 5),
        batch_size=st.integers(1, 4),
        chunks_per_step=st.integers(1, 3),
    ),
    seed=st.integers(0, 1000),
)
def test_every_sample_gets_exactly_its_tokens(
    wishes: list[tuple[int, int, int, bool]], shape: PipelineShape, seed: int
) -> None:
    bench, rng = Bench(shape), random.Random(seed)
    asked = [
        make_request(f"r{i}", prompt, tokens, n=n, eos_ids=(EOS,) if eos else ())
        for i, (prompt, tokens, n, eos) in enumerate(wishes)
    ]
    cancelled = {r.id for r in asked if rng.random() < 0.2}
    for request in asked:
        bench.give(Submit(request=request, now=bench.now))
        for _ in range(rng.randrange(3)):
            if bench.pipeline.flying:
                bench.turn()
            if cancelled and rng.random() < 0.3:
                bench.give(Cancel(request_id=rng.choice(sorted(cancelled)), now=bench.now))
    bench.drain()
    for request in asked:
        for sample in range(request.n):
            tokens = bench.out[(request.id, sample)]
            expected = expected_tokens(request, sample)
            assert tokens == expected[: len(tokens)]
            if request.id not in cancelled:
                assert tokens == expected
                assert bench.ends[(request.id, sample)] in (FinishReason.LENGTH, FinishReason.EOS)


def test_at_least_as_many_microbatches_fly_as_there_are_stages() -> None:
    bench = Bench(shape_of(n_stages=4, n_microbatches=4))
    for i in range(8):
        bench.give(Submit(request=make_request(f"r{i}", max_tokens=30), now=0.0))
    for _ in range(20):
        bench.turn()
        assert len(bench.pipeline.flying) == 4


def test_a_finished_row_is_refilled_by_the_next_step_and_the_others_go_on() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, batch_size=2))
    for name, n_tokens in (("short", 2), ("long", 12), ("later", 3)):
        bench.give(Submit(request=make_request(name, 3, n_tokens), now=0.0))
    seen = []
    while bench.pipeline.flying:
        seen.append(bench.pipeline.flying[0])
        bench.turn()
    short_end = next(i for i, s in enumerate(seen) if any(o.seq == 2 for o in s.opens))
    assert ("short", 0) in bench.ends
    long_steps = [i for i, s in enumerate(seen) if any(d.seq == 1 for d in s.decodes)]
    assert long_steps == list(range(long_steps[0], long_steps[-1] + 1))
    assert any(d.seq == 1 for d in seen[short_end].decodes)


def test_a_long_prompt_goes_in_chunks_beside_the_decodes_of_others() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, chunk_tokens=4, chunks_per_step=1))
    bench.give(Submit(request=make_request("a", 3, 20), now=0.0))
    bench.turn()
    bench.give(Submit(request=make_request("b", 18, 2), now=0.0))
    bench.turn()
    chunks = []
    for _ in range(5):
        step = bench.pipeline.flying[0]
        assert [d.seq for d in step.decodes] == [0]
        chunks += [(c.start, c.stop, c.draws) for c in step.chunks]
        bench.turn()
    assert chunks == [(0, 4, ()), (4, 8, ()), (8, 12, ()), (12, 16, ()), (16, 18, (0,))]


def test_a_short_prompt_does_not_wait_for_a_long_one_beside_it() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, batch_size=3))
    bench.give(Submit(request=make_request("a", 3, 30), now=0.0))
    bench.turn()
    bench.give(Submit(request=make_request("long", 40, 2), now=0.0))
    bench.turn()
    bench.give(Submit(request=make_request("short", 7, 2), now=0.0))
    bench.turn()
    step = bench.pipeline.flying[0]
    assert [(c.seq, c.start, c.stop) for c in step.chunks] == [(1, 8, 12), (2, 0, 4)]
    bench.turn()
    bench.turn()
    assert bench.out["short", 0]
    assert not bench.out["long", 0]
    bench.drain()
    assert len(bench.out["long", 0]) == 2


def test_samples_share_one_computed_prompt() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=2, batch_size=2))
    request = make_request("r", 9, 6, n=6)
    bench.give(Submit(request=request, now=0.0))
    chunks = copies = 0
    while bench.pipeline.flying:
        step = bench.pipeline.flying[0]
        chunks += len(step.chunks)
        copies += len(step.forks) + len(step.adopts)
        bench.turn()
    assert (chunks, copies) == (3, 5)
    for sample in range(6):
        assert bench.out[("r", sample)] == expected_tokens(request, sample)


def test_more_samples_than_rows_inherit_the_row_that_holds_the_prompt() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, batch_size=1))
    request = make_request("r", 6, 3, n=4)
    bench.give(Submit(request=request, now=0.0))
    bench.drain()
    assert {key: len(tokens) for key, tokens in bench.out.items()} == {
        ("r", i): 3 for i in range(4)
    }


def test_a_result_of_a_cancelled_row_is_dropped_and_the_row_reused() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, batch_size=1))
    bench.give(Submit(request=make_request("gone", 3, 20), now=0.0))
    bench.give(Submit(request=make_request("next", 3, 2), now=0.0))
    bench.turn()
    bench.give(Cancel(request_id="gone", now=1.0))
    assert bench.ends == {("gone", 0): FinishReason.CANCELLED}
    bench.drain()
    assert bench.out[("next", 0)] == expected_tokens(make_request("next", 3, 2), 0)
    bench.give(Cancel(request_id="gone", now=2.0))


def test_a_request_past_its_deadline_ends_even_while_it_waits() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, batch_size=1))
    bench.give(Submit(request=make_request("runs", 3, 50), now=0.0))
    bench.give(Submit(request=make_request("waits", 3, 5, deadline_s=4.0), now=0.0))
    assert bench.scheduler.next_deadline() == 4.0
    bench.give(Tick(now=3.9))
    assert not bench.ends
    bench.give(Tick(now=4.0))
    assert bench.ends == {("waits", 0): FinishReason.DEADLINE}
    assert bench.scheduler.next_deadline() is None


def test_refusals_name_both_numbers() -> None:
    bench = Bench(shape_of(), max_context=16, max_queue=1)
    bench.give(Submit(request=make_request("big", 20, 1), now=0.0))
    assert "16" in str(bench.rejects["big"]) and "20" in str(bench.rejects["big"])
    bench.give(Submit(request=make_request("oov", prompt_ids=(1, VOCAB)), now=0.0))
    assert f"token id {VOCAB}" in str(bench.rejects["oov"])
    for i in range(20):
        bench.give(Submit(request=make_request(f"r{i}", 3, 9), now=0.0))
    assert isinstance(bench.rejects["r19"], Overloaded)
    bench.give(Submit(request=make_request("r0"), now=0.0))
    assert "already running" in str(bench.rejects["r0"])
    bench.drain()


def test_without_a_queue_whoever_finds_a_row_is_served() -> None:
    bench = Bench(shape_of(), max_queue=0)
    for i in range(7):
        bench.give(Submit(request=make_request(f"r{i}"), now=0.0))
    assert list(bench.rejects) == ["r6"]
    assert "0 requests wait already; the limit is 0" in str(bench.rejects["r6"])
    bench.drain()
    bench.give(Submit(request=make_request("later"), now=9.0))
    bench.drain()
    assert len(bench.ends) == 7


def test_samples_that_wait_for_rows_are_no_requests_that_wait() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1), max_queue=2)
    bench.give(Submit(request=make_request("many", n=8), now=0.0))
    while not bench.out:
        bench.turn()
    assert bench.scheduler.statistics().n_queued > 2
    for name in ("first", "second", "third"):
        bench.give(Submit(request=make_request(name), now=1.0))
    assert list(bench.rejects) == ["third"]
    assert "2 requests wait" in str(bench.rejects["third"])
    bench.drain()
    assert len(bench.ends) == 10


def test_nobody_finds_a_row_while_a_stage_is_missing() -> None:
    bench = Bench(shape_of(), max_queue=0)
    bench.give(StageLost(pipeline=0, stage=1, now=0.0))
    bench.give(Submit(request=make_request("r"), now=0.0))
    assert isinstance(bench.rejects["r"], Overloaded)


def test_a_row_that_held_rubbish_is_scrubbed_for_its_next_owner() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, batch_size=1))
    bench.give(Submit(request=make_request("bad", 3, 9), now=0.0))
    bench.give(Submit(request=make_request("good", 3, 2), now=0.0))
    step = bench.pipeline.flying.popleft()
    done = StepDone(id=step.id, microbatch=0, firsts=((DrawFailed(reason="NaN"),),))
    bench.give(StepFinished(done=done, now=1.0))
    assert bench.ends == {("bad", 0): FinishReason.ERROR}
    assert bench.pipeline.flying[0].scrubs == (0,)
    bench.drain()


def test_a_step_that_is_not_in_flight_is_ignored() -> None:
    bench = Bench(shape_of())
    assert bench.scheduler.handle(StepFinished(done=StepDone(id=5, microbatch=0), now=0.0)) == []


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_few_requests_spread_over_as_many_microbatches_as_stages(stages: int) -> None:
    bench = Bench(shape_of(n_stages=stages, n_microbatches=stages + 1, batch_size=4))
    for i in range(stages * 2):
        bench.give(Submit(request=make_request(f"r{i}", 3, 30), now=0.0))
    for _ in range(8):
        bench.turn()
    rows: dict[int, int] = defaultdict(int)
    for step in bench.pipeline.flying:
        rows[step.microbatch] = len(step.decodes)
    assert sorted(rows.values()) == [2] * stages


def test_all_samples_end_when_the_prompt_they_share_does() -> None:
    bench = Bench(shape_of(n_stages=1, n_microbatches=1, batch_size=1))
    bench.give(Submit(request=make_request("runs", 30, 3, n=3), now=0.0))
    bench.give(Submit(request=make_request("late", 3, 3, n=2, deadline_s=1.0), now=0.0))
    bench.give(Tick(now=2.0))
    bench.give(Cancel(request_id="runs", now=2.0))
    bench.drain()
    assert bench.ends == {
        **{("late", i): FinishReason.DEADLINE for i in range(2)},
        **{("runs", i): FinishReason.CANCELLED for i in range(3)},
    }
