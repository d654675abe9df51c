"""Swapping, replication and failures in the simulator proper: what they cost and what they save."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dvrt.errors import ConfigError, DvrtError
from dvrt.models.null_timing import NullTiming
from dvrt.planner.equations import swapped_decode_time
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.deployment import Deployment, Failure, FailureFigures, LinkFigures
from tests.simulator.played import Played, burst, line, play

TIMING = NullTiming(decode_s=1.0, chunk_s=5.0, entry_bytes=100)
FAILURE = FailureFigures(given=(Failure(at_s=60.3, machine=2),), detect_s=3.0, restart_s=20.0)


def pipeline(**changes: object) -> Deployment:
    given = Deployment(
        tokens=line(4, TIMING, batch_size=2, load_s=7.0),
        links=LinkFigures(network=1e6, restore=1e6, latency_s=0.001),
    )
    return replace(given, **changes)


@pytest.mark.parametrize("rate", [500.0, 2_000.0, 1e6])
def test_swapping_waits_for_transfers_that_are_longer_than_a_step(rate: float) -> None:
    """Appendix G's sum of max(t, transfer_i), for a full pipeline of equal requests."""
    links = LinkFigures(host_to_device=rate, device_to_host=rate)
    stages, outputs, batch = 4, 60, 1
    deployment = Deployment(
        tokens=line(stages, replace(TIMING, chunk_s=0.0), batch_size=batch),
        links=links,
        device_slots=2,
    )
    played = play(deployment, burst(stages, prompt=10, output=outputs + 1))
    transfers = [batch * (10 + i) * 100 / rate for i in range(outputs)]
    expected = stages * swapped_decode_time(1.0, transfers)
    assert played.makespan_s == pytest.approx(expected, rel=0.05)


def test_swapping_with_a_frame_for_each_costs_nothing() -> None:
    slow = LinkFigures(host_to_device=1.0, device_to_host=1.0)
    given = pipeline(links=slow)
    assert play(replace(given, device_slots=4), burst(8)).ended == play(given, burst(8)).ended


def test_a_failure_costs_detection_restart_load_and_what_was_lost() -> None:
    quiet, broken = play(pipeline(), burst(8, output=30)), None
    broken = play(pipeline(failures=FAILURE), burst(8, output=30))
    copied = play(pipeline(failures=FAILURE, replicas=1), burst(8, output=30))
    assert len(broken.ended) == len(copied.ended) == 8
    outage_s = 3.0 + 20.0 + 7.0
    assert broken.counts["failures"] == copied.counts["failures"] == 1
    assert copied.makespan_s - quiet.makespan_s == pytest.approx(outage_s, abs=6.0)
    assert broken.makespan_s - quiet.makespan_s > outage_s + 15.0
    assert copied.counts["recomputed_tokens"] < 20 < broken.counts["recomputed_tokens"]
    assert copied.counts["restored_tokens"] > 0 == broken.counts["restored_tokens"]


def test_copies_fall_behind_on_a_slow_link_and_less_comes_back() -> None:
    fast, slow = (
        play(
            pipeline(failures=FAILURE, replicas=1, links=LinkFigures(network=rate)),
            burst(8, output=30),
        ).counts
        for rate in (1e6, 60.0)
    )
    assert slow["restored_tokens"] < fast["restored_tokens"]
    assert slow["recomputed_tokens"] > fast["recomputed_tokens"]


@pytest.mark.parametrize(("second", "comes_back"), [(0, True), (3, False)])
def test_two_failures_at_once(second: int, comes_back: bool) -> None:
    """Neighbours in the ring take each other's copies along."""
    both = replace(
        FAILURE, given=(Failure(at_s=60.0, machine=2), Failure(at_s=60.0, machine=second))
    )
    played = play(pipeline(failures=both, replicas=1), burst(8, output=30))
    assert len(played.ended) == 8
    assert (played.counts["recomputed_tokens"] < 20) == comes_back


def _mean_latency(played: Played) -> float:
    return played.tally.sketches["latency_s"].mean


@pytest.mark.parametrize("machine", [0, 1, 2, 3])
@pytest.mark.parametrize("replicas", [0, 1, 2])
@pytest.mark.parametrize("at_s", [3.0, 27.7, 61.0])
def test_any_machine_may_fail_while_prompts_are_apart(
    machine: int, replicas: int, at_s: float
) -> None:
    given = Deployment(
        prompts=line(2, TIMING, n_microbatches=3),
        tokens=line(2, TIMING, batch_size=2, n_microbatches=3),
        links=LinkFigures(network=1e4),
        replicas=replicas,
        failures=FailureFigures(given=(Failure(at_s=at_s, machine=machine),)),
    )
    requests = [Arrival(4.0 * i, 10 + i, 5 + 3 * i) for i in range(12)]
    played = play(given, requests)
    assert len(played.ended) == 12
    assert played.counts["failures"] == 1
    quiet = play(replace(given, failures=FailureFigures()), requests)
    assert _mean_latency(played) > _mean_latency(quiet)


def test_failures_without_end_are_survived() -> None:
    often = FailureFigures(mtbf_s=400.0, detect_s=1.0, restart_s=5.0)
    played = play(
        pipeline(failures=often, replicas=2, device_slots=2),
        [Arrival(10.0 * i, 10, 20) for i in range(40)],
    )
    assert len(played.ended) == 40
    assert played.counts["failures"] > 3
    for stage, busy_s in played.tally.busy_s.items():
        assert 0 < busy_s < played.makespan_s, stage


def test_failures_that_never_leave_time_for_a_request_end_the_simulation() -> None:
    always = FailureFigures(mtbf_s=2.0, detect_s=1.0)
    with pytest.raises(DvrtError, match="1000 failures"):
        play(pipeline(failures=always), burst(1, output=1000))


def test_a_stage_is_not_busy_with_what_it_never_computed() -> None:
    """Without recomputation the stages' work is the same with and without the failure."""
    one = [Arrival(0.0, 10, 5)]
    fails = FailureFigures(given=(Failure(at_s=2.0, machine=3),), detect_s=4.5, restart_s=1.0)
    quiet, broken = play(pipeline(), one), play(pipeline(failures=fails), one)
    ours, theirs = broken.tally.busy_s, quiet.tally.busy_s
    assert ours["tokens 3"] == pytest.approx(theirs["tokens 3"])
    assert ours["tokens 0"] == pytest.approx(theirs["tokens 0"] + 5.0)


def test_a_failure_after_the_end_does_not_happen() -> None:
    late = FailureFigures(given=(Failure(at_s=1e6, machine=0),))
    assert play(pipeline(failures=late), burst(2)).counts["failures"] == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pipeline(clusters=0), "0 clusters"),
        (lambda: pipeline(device_slots=1), "at least 2"),
        (lambda: pipeline(replicas=4), "at most 3"),
        (lambda: pipeline(failures=FailureFigures(given=(Failure(at_s=1, machine=4),))), "cannot"),
        (lambda: Failure(at_s=-1.0, machine=0), "from 0 on"),
        (lambda: Failure(at_s=float("nan"), machine=0), "from 0 on"),
        (lambda: FailureFigures(mtbf_s=0.0), "above 0"),
        (lambda: FailureFigures(detect_s=float("inf")), "finite"),
        (lambda: LinkFigures(network=0.0), "above 0"),
        (lambda: LinkFigures(latency_s=-1.0), "from 0 on"),
        (lambda: line(4, TIMING, n_microbatches=3), "need one each"),
        (lambda: line(4, TIMING, batch_size=0), "at least 1"),
    ],
)
def test_figures_that_cannot_be(make, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
