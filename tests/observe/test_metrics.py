"""Each engine counts for itself, in a form that Prometheus reads."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dvrt.observe.metrics import Metrics
from dvrt.results import WorkerStatus


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def finish(metrics: Metrics, reason: str = "stop", **changes: float | None) -> None:
    times = {"queued_s": 0.1, "first_token_s": 0.3, "total_s": 1.3, **changes}
    metrics.request_finished(reason, n_prompt=7, n_generated=11, **times)  # type: ignore[arg-type]


def test_requests_and_tokens() -> None:
    metrics = Metrics()
    metrics.request_submitted()
    metrics.request_rejected("queue_full")
    finish(metrics)
    finish(metrics, "cancelled")
    found = samples(metrics)
    assert found["dvrt_requests_submitted_total", ()] == 1
    assert found["dvrt_requests_rejected_total", (("reason", "queue_full"),)] == 1
    assert found["dvrt_requests_total", (("reason", "stop"),)] == 1
    assert found["dvrt_requests_total", (("reason", "cancelled"),)] == 1
    assert found["dvrt_tokens_total", (("kind", "prompt"),)] == 14
    assert found["dvrt_tokens_total", (("kind", "generated"),)] == 22


def test_latencies() -> None:
    metrics = Metrics()
    finish(metrics)
    finish(metrics, first_token_s=None)
    assert metrics.value("dvrt_queue_seconds_sum") == pytest.approx(0.2)
    assert metrics.value("dvrt_time_to_first_token_seconds_count") == 1
    assert metrics.value("dvrt_time_to_first_token_seconds_sum") == pytest.approx(0.3)
    assert metrics.value("dvrt_request_seconds_count") == 2


def test_the_time_per_token_is_each_samples_own() -> None:
    metrics = Metrics()
    times = {"queued_s": 0, "first_token_s": 0.1, "total_s": 1.6}
    metrics.request_finished("length", n_prompt=1, n_generated=6, paces=[0.2, 1.0], **times)
    assert metrics.value("dvrt_time_per_output_token_seconds_count") == 2
    assert metrics.value("dvrt_time_per_output_token_seconds_sum") == pytest.approx(0.2 + 1.0)
    assert metrics.value("dvrt_inter_token_seconds_count") == 0
    metrics.token_interval(1.4)
    assert metrics.value("dvrt_inter_token_seconds_sum") == pytest.approx(1.4)


def test_steps_by_stage() -> None:
    metrics = Metrics()
    for stage, seconds in ((0, 0.25), (1, 0.5), (1, 0.5)):
        metrics.step_finished(stage, seconds, "token")
    name = "dvrt_step_seconds_sum"
    assert metrics.value(name, stage="0", kind="token") == 0.25
    assert metrics.value(name, stage="1", kind="token") == 1.0
    assert metrics.value(name, stage="2", kind="token") == 0.0


def test_gauges_are_read_when_rendered() -> None:
    metrics = Metrics()
    depth = [1.0]
    metrics.watch(
        requests=lambda: 4, queue_depth=lambda: depth[0], rows=lambda: 6, rows_in_use=lambda: 5
    )
    assert samples(metrics)["dvrt_queue_depth", ()] == 1
    depth[0] = 3
    found = samples(metrics)
    gauges = ("dvrt_requests_open", "dvrt_queue_depth", "dvrt_rows_in_use", "dvrt_rows")
    assert [found[name, ()] for name in gauges] == [4, 3, 5, 6]
    with pytest.raises(ValueError, match="dvrt_rows"):
        metrics.add_gauge("dvrt_rows", "Again.", lambda: 0)


def test_workers_are_shown_as_long_as_they_live() -> None:
    figures = {
        **{"in_bytes": 5.0, "out_bytes": 6.0, "waited_s": 0.5, "gain": 1.5, "host_kv_bytes": 70.0},
        **{"hidden_context": 9.0, "paying_context": 33.0, "bandwidth": 1e9},
    }
    made = {"pid": 1, "device": "cpu", "kv_bytes": 30, "stage": 0, "layers": (0, 1)}
    workers = [
        WorkerStatus(name="a", role="prompt", state="ready", swap=figures, **made),
        WorkerStatus(name="b", role="token", state="ready", **made),
        WorkerStatus(name="c", role="token", state="lost", swap=figures, **made),
        WorkerStatus(name="d", role="spare", state="idle", **(made | {"stage": None})),
    ]
    metrics = Metrics()
    metrics.watch_workers(lambda: workers)
    found = samples(metrics)
    a, b = (
        (("role", role), ("stage", "0"), ("worker", name))
        for role, name in (("prompt", "a"), ("token", "b"))
    )
    assert found["dvrt_swap_in_bytes_total", a] == 5
    assert found["dvrt_swap_out_bytes_total", a] == 6
    assert found["dvrt_swap_wait_seconds_total", a] == 0.5
    assert found["dvrt_swap_gain", a] == 1.5
    assert ("dvrt_swap_gain", b) not in found
    assert found["dvrt_kv_bytes", (("memory", "host"), *a)] == 70
    assert found["dvrt_kv_bytes", (("memory", "device"), *b)] == 30
    assert {dict(labels).get("worker") for _, labels in found} == {None, "a", "b"}
    workers.clear()
    assert not [name for name, labels in samples(metrics) if dict(labels).get("worker")]


def test_engines_do_not_share() -> None:
    one, other = Metrics(), Metrics()
    one.request_submitted()
    assert one.value("dvrt_requests_submitted_total") == 1
    assert other.value("dvrt_requests_submitted_total") == 0


def test_model_and_http() -> None:
    metrics = Metrics()
    metrics.describe_model(name='a "b"\n', family="gpt2", version="1")
    metrics.http_response("/health", 200)
    metrics.http_hang_up()
    found = samples(metrics)
    labels = (("family", "gpt2"), ("name", 'a "b"\n'), ("version", "1"))
    assert found["dvrt_model_info", labels] == 1
    assert found["dvrt_http_responses_total", (("route", "/health"), ("status", "200"))] == 1
    assert found["dvrt_http_hang_ups_total", ()] == 1


def test_counts_from_several_threads() -> None:
    metrics = Metrics()

    def count() -> None:
        for _ in range(1000):
            metrics.step_finished(0, 0.001, "token")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.value("dvrt_step_seconds_count", stage="0", kind="token") == 4000
