"""Running in laps and jumps equals running visit by visit, in every bit."""

from __future__ import annotations

import random
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dvrt.simulator.compat_laps import add_repeatedly, run_laps
from dvrt.simulator.compat_steps import run_steps
from dvrt.simulator.compat_work import PipelineWork

times_us = st.one_of(
    st.sampled_from([0.0, 1.0, 0.1, 1000 / 3, 2e7]), st.floats(0, 1e6, allow_subnormal=False)
)


def added_one_by_one(value: float, step: float, times: int) -> float:
    for _ in range(times):
        value += step
    return value


@settings(max_examples=400)
@given(
    value=st.floats(0, 1e12, allow_subnormal=False),
    step=st.floats(0, 1e9, allow_subnormal=False),
    times=st.integers(0, 3000),
)
@example(value=2.0**53 - 1, step=1.0, times=100)
@example(value=1e300, step=1.0, times=10_000)
def test_repeated_addition_rounds_as_often(value: float, step: float, times: int) -> None:
    assert add_repeatedly(value, step, times) == added_one_by_one(value, step, times)


@settings(max_examples=300)
@given(
    mantissa=st.integers(2**52, 2**53 - 1),
    halves=st.integers(0, 200),
    exponent=st.integers(-20, 20),
    times=st.integers(25, 500),
)
def test_ties_go_to_the_same_side(mantissa: int, halves: int, exponent: int, times: int) -> None:
    """Steps of so many halves of the spacing, where every addition may be a tie."""
    spacing = 2.0**exponent
    value, step = mantissa * spacing, halves * spacing / 2
    assert add_repeatedly(value, step, times) == added_one_by_one(value, step, times)


def test_a_million_additions_take_no_time() -> None:
    started = time.perf_counter()
    for _ in range(1000):
        add_repeatedly(0.1, 0.7, 1_000_000)
    assert time.perf_counter() - started < 2


@st.composite
def works(draw: st.DrawFn) -> PipelineWork:
    stages = draw(st.integers(1, 7))
    longest = draw(st.sampled_from([2, 10, 80]))
    count = draw(st.integers(stages, stages + 20))
    lengths = draw(st.lists(st.integers(1, longest), min_size=count, max_size=count))
    entries = draw(
        st.one_of(
            st.just([0.0] * count),
            st.floats(0, 5e3).map(lambda gap: [gap * i for i in range(count)]),
            st.lists(st.floats(0, 5e5), min_size=count, max_size=count),
        )
    )
    return PipelineWork(
        stages=stages,
        lengths=lengths,
        entries_us=entries,
        prompt_us=draw(st.one_of(st.none(), times_us)),
        token_us=draw(times_us),
    )


@settings(max_examples=500)
@given(work=works())
def test_laps_equal_steps(work: PipelineWork) -> None:
    assert run_laps(work) == run_steps(work)


def test_laps_equal_steps_on_a_long_run_and_cost_far_less() -> None:
    source = random.Random(7)
    lengths = [min(max(int(source.lognormvariate(5, 0.8)), 2), 1000) for _ in range(200)]
    work = PipelineWork(
        stages=8,
        lengths=lengths,
        entries_us=[i * 211e3 for i in range(8)] + [0.0] * 192,
        prompt_us=211e3,
        token_us=4.175e3,
    )
    times = []
    outcomes = []
    for run in (run_steps, run_laps):
        started = time.perf_counter()
        outcomes.append(run(work))
        times.append(time.perf_counter() - started)
    assert outcomes[0] == outcomes[1]
    assert times[1] * 5 < times[0]


def test_visits_are_counted_without_running() -> None:
    work = PipelineWork(
        stages=3, lengths=[4, 2, 5], entries_us=[0.0] * 3, prompt_us=7.0, token_us=1.0
    )
    seen = 0

    def count(_: object) -> None:
        nonlocal seen
        seen += 1

    run_steps(work, count)
    assert seen == work.visits == 3 * (11 + 3)
