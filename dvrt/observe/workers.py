"""What the workers' statuses say, as metrics that are read when they are asked for.

Nothing is kept: a worker that has gone is not shown any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dvrt.results import WorkerStatus

Workers = Callable[[], Iterable[WorkerStatus]]

_GONE = ("lost", "ended")
_COUNTERS = (
    ("dvrt_swap_in_bytes", "KV bytes copied to the device by swapping.", "in_bytes"),
    ("dvrt_swap_out_bytes", "KV bytes copied to the host by swapping.", "out_bytes"),
    ("dvrt_swap_wait_seconds", "Time that compute stood still for swap-ins.", "waited_s"),
)
_GAUGES = (
    (
        "dvrt_swap_gain",
        "Times the tokens of half the batch without swapping, for requests that fill the context; "
        "below 1 swapping costs more than it brings.",
        "gain",
    ),
    (
        "dvrt_swap_hidden_context_tokens",
        "The longest context whose swap-in one step hides.",
        "hidden_context",
    ),
    (
        "dvrt_swap_paying_context_tokens",
        "The longest context that requests may fill for swapping to pay.",
        "paying_context",
    ),
    ("dvrt_swap_bandwidth_bytes", "Bytes a second that swap-ins reach.", "bandwidth"),
)


class WorkerCollector(Collector):
    """Samples for each living worker that has a stage, labelled by its name, role and stage."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the workers."""
        return ()

    def collect(self) -> Iterator[Metric]:
        staged = [
            each for each in self._workers() if each.stage is not None and each.state not in _GONE
        ]
        yield _kv_bytes(staged)
        swapping = [each for each in staged if each.swap]
        for name, help_text, key in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=_LABELS)
            for worker in swapping:
                counter.add_metric(_labels(worker), worker.swap[key])
            yield counter
        for name, help_text, key in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=_LABELS)
            for worker in swapping:
                gauge.add_metric(_labels(worker), worker.swap[key])
            yield gauge


_LABELS = ("worker", "role", "stage")


def _labels(worker: WorkerStatus) -> Sequence[str]:
    return (worker.name, worker.role, str(worker.stage))


def _kv_bytes(workers: Iterable[WorkerStatus]) -> Metric:
    family = GaugeMetricFamily(
        "dvrt_kv_bytes",
        "Memory of a stage's KV cache: on its device, and with swapping on its host.",
        labels=(*_LABELS, "memory"),
    )
    for worker in workers:
        family.add_metric((*_labels(worker), "device"), worker.kv_bytes)
        if worker.swap:
            family.add_metric((*_labels(worker), "host"), worker.swap["host_kv_bytes"])
    return family
