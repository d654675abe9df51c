"""The lag of copies: tokens of one sequence, counted from steps and acknowledgements."""

from __future__ import annotations

from dvrt.cluster.replication import MAX_STEPS, ReplicaLags


def test_the_lag_is_that_of_the_microbatch_that_lacks_most() -> None:
    lags = ReplicaLags()
    for step in range(12):
        lags.finished(0, step, step % 3)
    assert lags.acknowledged(0, 11) == 0
    assert lags.acknowledged(0, 10) == 1
    assert lags.acknowledged(0, 8) == 1
    assert lags.acknowledged(0, 7) == 2
    assert lags.acknowledged(0, -1) == 4


def test_an_acknowledgement_may_come_before_its_step() -> None:
    lags = ReplicaLags()
    assert lags.acknowledged(0, 5) == 0
    lags.finished(0, 4, 0)
    assert lags.acknowledged(0, 5) == 0


def test_pipelines_are_apart_and_forgotten() -> None:
    lags = ReplicaLags()
    for step in range(10):
        lags.finished(step % 2, step, 0)
    assert (lags.acknowledged(0, -1), lags.acknowledged(1, -1)) == (5, 5)
    lags.forget(0)
    assert (lags.acknowledged(0, -1), lags.acknowledged(1, -1)) == (0, 5)


def test_memory_is_bounded() -> None:
    lags = ReplicaLags()
    for step in range(MAX_STEPS + 100):
        lags.finished(0, step, 0)
    assert lags.acknowledged(0, -1) == MAX_STEPS
