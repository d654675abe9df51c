"""Rows whose memory is to be cleaned: nobody inherits them, and void steps have cleaned nothing."""

from __future__ import annotations

from dvrt.control.events import RunStep, StageLost, StageReady, StepFinished, Submit
from dvrt.control.pipeline import PipelinePlan, PipelineShape, Purpose
from dvrt.control.scheduler import Limits, Scheduler
from dvrt.control.steps import DrawFailed, Step, StepDone
from dvrt.requests import Request, SampledToken, SamplingParams


def scheduler(n_microbatches: int = 2) -> Scheduler:
    shape = PipelineShape(
        n_stages=2,
        n_microbatches=n_microbatches,
        batch_size=1,
        chunk_tokens=8,
        chunks_per_step=2,
    )
    plan = PipelinePlan(id=0, purpose=Purpose.BOTH, shape=shape)
    return Scheduler([plan], Limits(max_context=64, vocab_size=100, max_queue=9))


def request(name: str, n: int = 1) -> Request:
    sampling = SamplingParams()
    return Request(id=name, prompt_ids=(1, 2, 3), max_tokens=9, sampling=sampling, n=n)


def steps(commands: list[object]) -> list[Step]:
    return [each.step for each in commands if isinstance(each, RunStep)]


def finish(step: Step, **drawn: object) -> StepFinished:
    done = StepDone(id=step.id, microbatch=step.microbatch, **drawn)  # type: ignore[arg-type]
    return StepFinished(done=done, now=0)


FAILED = DrawFailed(reason="not finite")


def test_a_void_step_has_cleaned_nothing() -> None:
    made = scheduler()
    (prompt,) = steps(made.handle(Submit(request=request("a"), now=0)))
    (cleaning,) = steps(made.handle(finish(prompt, firsts=((FAILED,),))))
    assert cleaning.scrubs == (prompt.chunks[0].slot,)
    made.handle(StageLost(pipeline=0, stage=0, now=0))
    again = steps(made.handle(StageReady(pipeline=0, stage=0, now=1)))
    assert [each.scrubs for each in again] == [cleaning.scrubs]


def test_a_row_that_is_cleaned_has_no_heir() -> None:
    """The sibling that waits computes the prompt anew, in a row of its own."""
    made = scheduler(n_microbatches=2)
    (prompt,) = steps(made.handle(Submit(request=request("a", n=2), now=0)))
    made.handle(Submit(request=request("b"), now=0))
    first = tuple(SampledToken(id=5 + i, logprob=0.0) for i in range(2))
    (decode,) = steps(made.handle(finish(prompt, firsts=(first,))))
    assert not decode.forks
    later = steps(made.handle(finish(decode, decoded=(FAILED,))))
    slot = prompt.chunks[0].slot
    assert slot in {slot for step in later for slot in step.scrubs}
    assert not [fork for step in later for fork in step.forks]
    made.check_integrity()
