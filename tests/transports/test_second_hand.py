"""Two hands: both have copied when ``share`` returns, whatever either of them meets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dvrt.errors import DvrtError
from dvrt.transport.second_hand import SecondHand


@pytest.fixture
def second() -> Iterator[SecondHand]:
    made = SecondHand()
    yield made
    made.close()


def raises(error: Exception) -> None:
    raise error


def test_both_run_at_once_on_threads_of_their_own(second: SecondHand) -> None:
    together = threading.Barrier(2, timeout=10)
    for _ in range(3):
        second.share(lambda: together.wait() and None, lambda: together.wait() and None)


def test_an_error_of_either_is_raised_and_the_other_is_over(second: SecondHand) -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="theirs"):
        second.share(lambda: done.append(1), lambda: raises(ValueError("theirs")))
    with pytest.raises(ValueError, match="mine"):
        second.share(lambda: raises(ValueError("mine")), lambda: done.append(2))
    assert done == [1, 2]
    second.share(lambda: done.append(3), lambda: done.append(4))
    assert sorted(done) == [1, 2, 3, 4]


def test_its_thread_begins_with_the_first_work_and_ends_with_it(second: SecondHand) -> None:
    before = threading.active_count()
    second.close()
    second.close()
    assert threading.active_count() == before
    with pytest.raises(DvrtError, match="closed"):
        second.share(lambda: None, lambda: None)
