"""Stage executors over the hash model, driven by the scheduler: a byte of KV wrong, text wrong."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvrt.control.events import Emit, RunStep, StepFinished, Submit
from dvrt.control.pipeline import PipelinePlan, PipelineShape, Purpose
from dvrt.control.scheduler import Limits, Scheduler
from dvrt.control.steps import Decode, DrawFailed, Open, Step, StepDone
from dvrt.errors import DvrtError, ProtocolError
from dvrt.kv.spans import Span
from dvrt.models.hash_model import HashModel
from dvrt.models.split import split_evenly
from dvrt.requests import Request, SampledToken, SamplingParams
from dvrt.stages.drawing import Drawings
from dvrt.stages.executor import Executed, StageExecutor

N_LAYERS, VOCAB, CONTEXT = 6, 97, 64
GREEDY = SamplingParams(temperature=0.0)


def draw(
    logits: Any, params: SamplingParams, sample: int, position: int, context: Sequence[int]
) -> SampledToken:
    return SampledToken(id=int(np.argmax(np.roll(logits, sample * 7))))


class Stages:
    """All stages of a pipeline in one object; hidden states go through bytes, as on the wire."""

    def __init__(self, shape: PipelineShape) -> None:
        intervals = split_evenly(N_LAYERS, shape.n_stages)
        self.executors = [
            StageExecutor(
                HashModel(
                    first_layer=first,
                    stop_layer=stop,
                    n_slots=shape.n_slots,
                    batch_size=shape.batch_size,
                    max_context=CONTEXT,
                    vocab_size=VOCAB,
                ),
                span=Span.of(first, stop),
                n_layers=N_LAYERS,
                n_slots=shape.n_slots,
                batch_size=shape.batch_size,
                max_context=CONTEXT,
                draw=draw if stop == N_LAYERS else None,
            )
            for first, stop in intervals
        ]

    def run(self, step: Step) -> StepDone:
        received: list[bytearray] = []
        out = Executed()
        for executor in self.executors:
            out = executor.execute(step, received)
            received = [bytearray(np.ascontiguousarray(hidden).tobytes()) for hidden in out.hidden]
        return StepDone(
            id=step.id, microbatch=step.microbatch, decoded=out.decoded, firsts=out.firsts
        )


def serve(requests: list[Request], shape: PipelineShape) -> dict[tuple[str, int], list[int]]:
    plan = PipelinePlan(id=0, purpose=Purpose.BOTH, shape=shape)
    scheduler = Scheduler([plan], Limits(max_context=CONTEXT, vocab_size=VOCAB, max_queue=100))
    stages, out = Stages(shape), defaultdict(list)
    events: deque[Any] = deque(Submit(request=request, now=0.0) for request in requests)
    while events:
        for command in scheduler.handle(events.popleft()):
            if isinstance(command, RunStep):
                events.append(StepFinished(done=stages.run(command.step), now=0.0))
            elif isinstance(command, Emit) and command.token is not None:
                out[(command.request_id, command.sample)].append(command.token.id)
    return out


def shape_of(n_stages: int, n_microbatches: int, batch_size: int, chunk: int = 8) -> PipelineShape:
    return PipelineShape(
        n_stages=n_stages,
        n_microbatches=n_microbatches,
        batch_size=batch_size,
        chunk_tokens=chunk,
        chunks_per_step=2,
    )


wishes = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=8
)


@settings(max_examples=30, deadline=None)
@given(
    wishes=wishes,
    n_stages=st.integers(1, N_LAYERS),
    n_microbatches=st.integers(1, 4),
    batch_size=st.integers(1, 4),
    chunk=st.integers(1, 16),
)
def test_tokens_do_not_depend_on_the_pipeline(
    wishes: list[tuple[int, int, int]],
    n_stages: int,
    n_microbatches: int,
    batch_size: int,
    chunk: int,
) -> None:
    requests = [
        Request(
            id=f"r{i}",
            prompt_ids=tuple((i * 31 + j * 7) % VOCAB for j in range(prompt)),
            max_tokens=tokens,
            n=n,
            sampling=GREEDY,
        )
        for i, (prompt, tokens, n) in enumerate(wishes)
    ]
    alone = {
        key: tokens
        for request in requests
        for key, tokens in serve([request], shape_of(1, 1, 8)).items()
    }
    assert serve(requests, shape_of(n_stages, n_microbatches, batch_size, chunk)) == alone


def _opened(executor: StageExecutor) -> None:
    executor.execute(
        Step(
            id=0,
            microbatch=0,
            opens=(Open(slot=0, seq=1, epoch=0, sample=0, sampling=GREEDY),),
            decodes=(Decode(slot=0, seq=1, epoch=0, position=0, token=3),),
        ),
        [],
    )


def test_one_altered_entry_changes_the_next_token() -> None:
    outcomes = set()
    for flip in (None, (0, 0), (N_LAYERS - 1, 0)):
        (executor,) = Stages(shape_of(1, 1, 1)).executors
        _opened(executor)
        assert isinstance(executor.model, HashModel)
        if flip is not None:
            executor.model.entries(0, 0, 1)[flip] ^= np.uint64(1)
        done = executor.execute(
            Step(
                id=1,
                microbatch=0,
                decodes=(Decode(slot=0, seq=1, epoch=0, position=1, token=4),),
            ),
            [],
        )
        outcomes.add(done.decoded)
    assert len(outcomes) == 3


@pytest.mark.parametrize(
    "step",
    [
        Step(id=1, microbatch=0, decodes=(Decode(slot=0, seq=1, epoch=0, position=2, token=1),)),
        Step(id=1, microbatch=0, decodes=(Decode(slot=0, seq=2, epoch=0, position=1, token=1),)),
        Step(id=1, microbatch=1, decodes=(Decode(slot=0, seq=1, epoch=0, position=1, token=1),)),
    ],
)
def test_a_step_that_breaks_the_log_is_refused(step: Step) -> None:
    (executor,) = Stages(shape_of(1, 2, 1)).executors
    _opened(executor)
    with pytest.raises(ProtocolError):
        executor.execute(step, [])


def test_a_stage_that_misses_hidden_states_refuses() -> None:
    executor = Stages(shape_of(2, 1, 1)).executors[1]
    with pytest.raises(ProtocolError, match="0 hidden states"):
        _opened(executor)


def test_a_row_that_cannot_be_drawn_fails_alone() -> None:
    def picky(logits: Any, *rest: Any) -> SampledToken:
        raise DvrtError("the logits are not finite")

    (executor,) = Stages(shape_of(1, 1, 1)).executors
    executor._drawings = Drawings(picky)
    step = Step(
        id=0,
        microbatch=0,
        opens=(Open(slot=0, seq=1, epoch=0, sample=0, sampling=GREEDY),),
        decodes=(Decode(slot=0, seq=1, epoch=0, position=0, token=3),),
    )
    assert executor.execute(step, []).decoded == (DrawFailed(reason="the logits are not finite"),)
