"""What one engine counts, in Prometheus' text format; each engine has a registry of its own.

This and ``workers`` alone import prometheus_client. All methods are cheap and none blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from dvrt.observe.workers import WorkerCollector, Workers

LATENCY_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0),
)
STEP_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
LAG_BUCKETS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 25.0, 100.0, 1000.0)
LENGTH_BUCKETS = tuple(float(2**power) for power in range(18))

Reading = Callable[[], float]


class Metrics:
    """Counters, histograms and gauges of one engine. Safe to call from any thread."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._info = Info("dvrt_model", "The model that is served.", registry=self._registry)
        self._make_request_metrics()
        self._make_latency_metrics()
        self._make_recovery_metrics()
        self._steps = self._histogram(
            "dvrt_step_seconds", "Compute time of one step.", STEP_BUCKETS_S, ["stage", "kind"]
        )
        self._responses = self._counter(
            "dvrt_http_responses_total", "HTTP responses begun.", ["route", "status"]
        )
        self._hang_ups = self._counter(
            "dvrt_http_hang_ups_total", "Clients that left before their answer was complete."
        )

    def _make_request_metrics(self) -> None:
        self._submitted = self._counter(
            "dvrt_requests_submitted_total", "Requests that were let in."
        )
        self._rejected = self._counter(
            "dvrt_requests_rejected_total", "Requests that were refused.", ["reason"]
        )
        self._finished = self._counter(
            "dvrt_requests_total", "Requests that ended, by how they did.", ["reason"]
        )
        self._tokens = self._counter(
            "dvrt_tokens_total", "Tokens of ended requests: prompt or generated.", ["kind"]
        )
        self._lengths = self._histogram(
            "dvrt_request_tokens", "Tokens of one ended request.", LENGTH_BUCKETS, ["kind"]
        )

    def _make_latency_metrics(self) -> None:
        self._queued = self._histogram(
            "dvrt_queue_seconds", "From submission to a row.", LATENCY_BUCKETS_S
        )
        self._first_token = self._histogram(
            "dvrt_time_to_first_token_seconds", "From submission to a token.", LATENCY_BUCKETS_S
        )
        self._per_token = self._histogram(
            "dvrt_time_per_output_token_seconds",
            "Mean time from one token to the next, one value for each sample of an ended request.",
            LATENCY_BUCKETS_S,
        )
        self._interval = self._histogram(
            "dvrt_inter_token_seconds",
            "Time from one token of a sample to its next.",
            LATENCY_BUCKETS_S,
        )
        self._total = self._histogram(
            "dvrt_request_seconds", "From submission to the end.", LATENCY_BUCKETS_S
        )
        self._places = self._histogram(
            "dvrt_place_seconds",
            "How long an ended request was in a place: queue, slot, prompt, transfer or token.",
            LATENCY_BUCKETS_S,
            ["place"],
        )

    def _make_recovery_metrics(self) -> None:
        self._losses = self._counter("dvrt_worker_losses_total", "Workers that were lost.")
        self._lag = self._histogram(
            "dvrt_replica_lag_tokens",
            "Tokens of one sequence that copies of its log had lacked until more was acknowledged.",
            LAG_BUCKETS,
        )
        self._recoveries = self._histogram(
            "dvrt_recovery_seconds",
            "Parts of a recovery: detect (since it was last heard), replace, restore, recompute.",
            LATENCY_BUCKETS_S,
            ["part"],
        )

    def _counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, help_text, labels, registry=self._registry)

    def _histogram(
        self, name: str, help_text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, help_text, labels, registry=self._registry, buckets=buckets)

    def describe_model(self, *, name: str, family: str, version: str) -> None:
        """Labels of ``dvrt_model_info``."""
        self._info.info({"name": name, "family": family, "version": version})

    def watch(
        self, *, requests: Reading, queue_depth: Reading, rows: Reading, rows_in_use: Reading
    ) -> None:
        """Read these at each ``render``: requests that have not ended, samples that wait for a row,
        rows in all, samples that hold one."""
        readings = (
            ("dvrt_requests_open", "Requests that were let in and have not ended.", requests),
            ("dvrt_queue_depth", "Samples that wait for a row.", queue_depth),
            ("dvrt_rows", "Rows in all, where tokens are made.", rows),
            (
                "dvrt_rows_in_use",
                "Samples that hold a row, or have one set aside while prompt stages compute.",
                rows_in_use,
            ),
        )
        for name, help_text, reading in readings:
            self.add_gauge(name, help_text, reading)

    def watch_workers(self, workers: Workers) -> None:
        """Show at each ``render`` what the statuses of these workers say of their KV caches."""
        self._registry.register(WorkerCollector(workers))

    def add_gauge(self, name: str, help_text: str, reading: Reading) -> None:
        """One more value to read at each ``render``. Raises ValueError for a name that is taken."""
        Gauge(name, help_text, registry=self._registry).set_function(reading)

    def request_submitted(self) -> None:
        self._submitted.inc()

    def request_rejected(self, reason: str) -> None:
        """Count a refusal; ``reason`` is one of a few words, never text from a client."""
        self._rejected.labels(reason).inc()

    def request_finished(
        self,
        reason: str,
        *,
        n_prompt: int,
        n_generated: int,
        queued_s: float,
        first_token_s: float | None,
        total_s: float,
        paces: Iterable[float] = (),
    ) -> None:
        """Count an ended request. Seconds are from its submission; ``first_token_s`` is None where
        no token came. ``n_generated`` counts the tokens of all its samples; ``paces`` has the mean
        seconds between the tokens of each.
        """
        self._finished.labels(reason).inc()
        for kind, count in (("prompt", n_prompt), ("generated", n_generated)):
            self._tokens.labels(kind).inc(count)
            self._lengths.labels(kind).observe(count)
        self._queued.observe(queued_s)
        self._total.observe(total_s)
        if first_token_s is not None:
            self._first_token.observe(first_token_s)
        for seconds in paces:
            self._per_token.observe(seconds)

    def token_interval(self, seconds: float) -> None:
        """A token came so long after the one before it, of the same sample."""
        self._interval.observe(seconds)

    def waited(self, place: str, seconds: float) -> None:
        """An ended request was in a place for so long."""
        self._places.labels(place).observe(seconds)

    def worker_lost(self) -> None:
        self._losses.inc()

    def replica_lag(self, tokens: int) -> None:
        """A copy was acknowledged, and this is what it still lacks."""
        self._lag.observe(tokens)

    def recovered(self, part: str, seconds: float) -> None:
        """A part of a recovery took so long."""
        self._recoveries.labels(part).observe(seconds)

    def step_finished(self, stage: int, seconds: float, kind: str) -> None:
        """Stage ``stage`` computed a step of a kind (prompt, token, mixed) in ``seconds``."""
        self._steps.labels(str(stage), kind).observe(seconds)

    def http_response(self, route: str, status: int) -> None:
        """``route`` is a route's pattern, never a path from a client."""
        self._responses.labels(route, str(status)).inc()

    def http_hang_up(self) -> None:
        self._hang_ups.inc()

    def render(self) -> bytes:
        """All metrics as text, of the type ``content_type``."""
        return generate_latest(self._registry)

    def value(self, name: str, **labels: str) -> float:
        """One sample's present value, 0 where there is none yet; for tests and tables."""
        return self._registry.get_sample_value(name, labels) or 0.0
