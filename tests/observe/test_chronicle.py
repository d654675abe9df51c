"""What a cluster lets people see: paces of streams, rows, and copies that found no room."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from dvrt.clock import ManualClock
from dvrt.cluster.chronicle import Chronicle
from dvrt.cluster.engine import Engine
from dvrt.cluster.journal_store import Asked
from dvrt.cluster.kept_stream import KeptStream
from dvrt.cluster.stream import RequestStream
from dvrt.control.events import Emit
from dvrt.control.scheduler import SchedulerStatistics
from dvrt.models.tiny import write_tiny
from dvrt.observe.metrics import Metrics
from dvrt.protocol.messages import Replicated
from dvrt.requests import FinishReason, Request, SampledToken, SamplingParams
from tests.runtime.crowd import virtual

REFUSED = "dvrt_replicas_refused"


def token(sample: int, index: int, finish: FinishReason | None = None) -> Emit:
    drawn = SampledToken(id=index)
    return Emit(request_id="a", sample=sample, index=index, token=drawn, finish=finish)


def request(n: int) -> Request:
    return Request(id="a", prompt_ids=(1,), max_tokens=9, n=n, sampling=SamplingParams())


def statistics() -> SchedulerStatistics:
    return SchedulerStatistics(
        n_queued=3,
        n_running=2,
        n_rows=4,
        n_in_flight=1,
        n_requests=1,
        n_moving=0,
        recomputed_tokens=0,
        restored_tokens=0,
        n_refused=0,
    )


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def chronicle(metrics: Metrics) -> Chronicle:
    chronicle = Chronicle(metrics, None, ManualClock())
    chronicle.read(statistics)
    return chronicle


def test_each_sample_has_a_pace_of_its_own(chronicle: Chronicle, metrics: Metrics) -> None:
    stream = RequestStream(request(2), submitted=10.0)
    last = token(1, 2, FinishReason.LENGTH)
    for at, emit in (
        (11.0, token(0, 0)),
        (11.0, token(1, 0)),
        (11.5, token(0, 1, FinishReason.STOP)),
        (13.0, token(1, 1)),
        (13.25, last),
    ):
        gap = stream.put(emit, at)
        if gap is not None:
            chronicle.paced(gap)
    chronicle.finished(stream, last)
    assert stream.paces == [0.5, 2.25 / 2]
    assert metrics.value("dvrt_inter_token_seconds_count") == 3
    assert metrics.value("dvrt_inter_token_seconds_sum") == 2.75
    assert metrics.value("dvrt_time_per_output_token_seconds_count") == 2
    assert metrics.value("dvrt_time_per_output_token_seconds_sum") == 0.5 + 2.25 / 2


def test_tokens_of_an_earlier_life_have_no_pace() -> None:
    asked = Asked(request=request(1), taken_at=0.0, stop=())
    stream = KeptStream(asked, submitted=5.0, linger_s=1.0)
    stream.recall((token(0, 0), token(0, 1)))
    assert stream.put(token(0, 2), 900.0) is None
    assert stream.put(token(0, 3), 901.0) == 1.0
    assert stream.paces == [1.0]


def test_gauges_tell_requests_samples_and_rows_apart(
    chronicle: Chronicle, metrics: Metrics
) -> None:
    names = ("dvrt_requests_open", "dvrt_queue_depth", "dvrt_rows_in_use", "dvrt_rows")
    assert [metrics.value(name) for name in names] == [1, 3, 2, 4]


def test_copies_that_find_no_room_are_told_once(
    chronicle: Chronicle, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    def told(n_refused: int, holder: str = "h", stage: int = 0) -> None:
        stored = Replicated(pipeline=0, stage=stage, holder=holder, step=1, refused=n_refused)
        chronicle.replicated(stored, f"on-{holder}")

    with caplog.at_level(logging.WARNING, "dvrt.cluster"):
        for n_refused in (0, 2, 2, 0, 1, 3, 2):
            told(n_refused)
        told(4, "other", 1)
    assert metrics.value(REFUSED) == 2 + 4
    records = [(each.subject, each.state, each.reason) for each in chronicle.records()]
    assert [subject for subject, _, _ in records] == [f"pipeline 0 stage {i}" for i in (0, 0, 1)]
    assert {state for _, state, _ in records} == {"warned"}
    for (_, _, reason), holder, n_logs in zip(records, ("h", "h", "other"), (2, 3, 4), strict=True):
        assert f"worker on-{holder} has no room for copies of {n_logs} logs" in reason
        assert "replica_memory" in reason
    assert len(caplog.records) == 2, "one for each holder"
    chronicle.copies_lost("other")
    assert metrics.value(REFUSED) == 2
    chronicle.retired(0)
    assert metrics.value(REFUSED) == 0


@pytest.mark.parametrize(("memory", "is_enough"), [("1KB", False), ("1MB", True)])
def test_a_cluster_says_that_it_has_no_room_for_copies(
    tmp_path: Path, memory: str, is_enough: bool
) -> None:
    async def work(engine: Engine) -> None:
        wish = {"max_tokens": 40, "ignore_eos": True}
        asked = [asyncio.create_task(engine.complete([7] * 20, **wish)) for _ in range(3)]
        seen = [0.0]
        while not all(each.done() for each in asked):
            await asyncio.sleep(0.01)
            seen.append(engine.metrics.value(REFUSED))
        await asyncio.gather(*asked)
        await asyncio.sleep(1.0)
        assert max(seen) == (0 if is_enough else 6), "of three logs on each of two stages"
        assert engine.metrics.value(REFUSED) == 0, "nothing runs, so nothing lacks a copy"
        reasons = [each.reason for each in engine.events() if each.state == "warned"]
        assert bool(reasons) is not is_enough
        assert all(each.startswith("worker worker-") for each in reasons)

    model = write_tiny(tmp_path / "tiny", "gpt2", n_layers=2)
    virtual(model, work, stages=2, replica_memory=memory)
