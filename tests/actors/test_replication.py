"""The lag of copies: tokens of one sequence, counted from steps and acknowledgements."""

from __future__ import annotations

from dvrt.cluster.replication import MAX_STEPS, ReplicaLags

STAGE = 2


def lag_of(lags: ReplicaLags, pipeline: int, step: int) -> int | None:
    """What a stage would lack whose copies reach up to this step."""
    lags.acknowledged(pipeline, STAGE + step, "holder", step)
    return lags.lag(pipeline, STAGE + step)


def test_the_lag_is_that_of_the_microbatch_that_lacks_most() -> None:
    lags = ReplicaLags()
    for step in range(12):
        lags.finished(0, step, step % 3)
    assert [lag_of(lags, 0, step) for step in (11, 10, 8, 7, -1)] == [0, 1, 1, 2, 4]


def test_it_grows_until_more_is_acknowledged_which_tells_what_had_been_lacking() -> None:
    lags = ReplicaLags()
    assert lags.lag(0, STAGE) is None
    assert lags.acknowledged(0, STAGE, "a", -1) == 0
    for step in range(4):
        lags.finished(0, step, 0)
    assert lags.lag(0, STAGE) == 4
    assert lags.acknowledged(0, STAGE, "a", 2) == 4
    assert lags.lag(0, STAGE) == 1


def test_the_best_copies_count_while_their_holder_lives() -> None:
    lags = ReplicaLags()
    for step in range(4):
        lags.finished(0, step, 0)
    lags.acknowledged(0, STAGE, "a", 3)
    assert lags.acknowledged(0, STAGE, "b", 1) == 4
    assert lags.lag(0, STAGE) == 0
    lags.lost("a")
    assert lags.lag(0, STAGE) == 2
    lags.lost("b")
    assert lags.lag(0, STAGE) is None


def test_an_acknowledgement_may_come_before_its_step() -> None:
    lags = ReplicaLags()
    lags.acknowledged(0, STAGE, "a", 5)
    lags.finished(0, 4, 0)
    assert lags.lag(0, STAGE) == 0


def test_pipelines_are_apart_and_forgotten() -> None:
    lags = ReplicaLags()
    for step in range(10):
        lags.finished(step % 2, step, 0)
    assert (lag_of(lags, 0, -1), lag_of(lags, 1, -1)) == (5, 5)
    lags.forget(0)
    assert lags.lag(0, STAGE - 1) is None
    assert lags.lag(1, STAGE - 1) == 5


def test_memory_is_bounded() -> None:
    lags = ReplicaLags()
    for step in range(MAX_STEPS + 100):
        lags.finished(0, step, 0)
    assert lag_of(lags, 0, -1) == MAX_STEPS
