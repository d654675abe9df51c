"""A plain model of microbatches in a pipeline, to hold the scheduler and the simulator against.

Written apart from ``dvrt.control``: it has no sequences, slots or steps, only rows that need a
prompt and then tokens. Prompts are computed whole; a free row is refilled at once.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from dvrt.errors import ConfigError
from dvrt.models.null_timing import NullTiming
from dvrt.simulator.arrivals import Arrival
from dvrt.simulator.deployment import Deployment, LineFigures


@dataclass(slots=True)
class Row:
    """A request and how far it has come."""

    arrival: Arrival
    n_done: int = 0

    @property
    def is_over(self) -> bool:
        return self.n_done >= self.arrival.output

    @property
    def context(self) -> int:
        return self.arrival.prompt + self.n_done


def plain_latencies(deployment: Deployment, requests: Iterable[Arrival]) -> list[float]:
    """Seconds a generated token of each request, from its arrival on, in order of their ends.

    Only the shape, the step times and the network of one cluster count; swapping, replicas and
    failures are none of this model's business.
    """
    if deployment.clusters != 1:
        raise ConfigError(f"{deployment.clusters} clusters; the plain model knows one")
    if deployment.prompts is None:
        return _Colocated(deployment.tokens).play(requests)
    return _Disaggregated(deployment, deployment.prompts).play(requests)


class _Stages:
    """Serial servers in a row."""

    def __init__(self, timings: Iterable[NullTiming]) -> None:
        self._timings = list(timings)
        self._free_s = [0.0] * len(self._timings)

    def pass_through(self, now: float, prompts: list[int], contexts: list[int]) -> float:
        """When a microbatch with these prompts and these decoding rows is through."""
        for stage, timing in enumerate(self._timings):
            start_s = max(now, self._free_s[stage])
            cost_s = sum(timing.chunk_step_s(0, prompt) for prompt in prompts)
            now = self._free_s[stage] = start_s + cost_s + timing.decode_step_s(contexts)
        return now


class _Play(ABC):
    """Requests by arrival, microbatches by when they are through; what both models share."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, int]] = []
        self._n_events = 0
        self._queue: deque[Row] = deque()
        self._latencies: list[float] = []

    def play(self, requests: Iterable[Arrival]) -> list[float]:
        for arrival in requests:
            self._until(arrival.at_s)
            self._queue.append(Row(arrival))
            self._came(arrival.at_s)
        self._until(math.inf)
        return self._latencies

    def _until(self, moment_s: float) -> None:
        while self._events and self._events[0][0] < moment_s:
            now, _, which = heapq.heappop(self._events)
            self._through(now, which)

    def _later(self, at_s: float, which: int) -> None:
        self._n_events += 1
        heapq.heappush(self._events, (at_s, self._n_events, which))

    def _token(self, rows: list[Row], now: float) -> list[Row]:
        """Each row has one token more; those that go on."""
        for row in rows:
            row.n_done += 1
            if row.is_over:
                self._latencies.append((now - row.arrival.at_s) / row.arrival.output)
        return [row for row in rows if not row.is_over]

    @abstractmethod
    def _came(self, now: float) -> None:
        """Someone has joined the queue, or a row is free."""

    @abstractmethod
    def _through(self, now: float, which: int) -> None:
        """Something that was put down for later is through."""


class _Colocated(_Play):
    """One pipeline: a microbatch computes its new rows' prompts beside the others' tokens."""

    def __init__(self, line: LineFigures) -> None:
        super().__init__()
        self._stages = _Stages(stage.timing for stage in line.stages)
        self._size = line.batch_size
        self._rows: list[list[Row]] = [[] for _ in range(line.n_microbatches)]

    def _came(self, now: float) -> None:
        for which, rows in enumerate(self._rows):
            if not rows:
                self._launch(now, which)
                return

    def _through(self, now: float, which: int) -> None:
        self._rows[which] = self._token(self._rows[which], now)
        self._launch(now, which)

    def _launch(self, now: float, which: int) -> None:
        rows = self._rows[which]
        contexts = [row.context - 1 for row in rows]
        prompts = []
        while self._queue and len(rows) < self._size:
            rows.append(self._queue.popleft())
            prompts.append(rows[-1].arrival.prompt)
        if rows:
            self._later(self._stages.pass_through(now, prompts, contexts), which)


class _Disaggregated(_Play):
    """Two pipelines. A prompt begins only when a row for its tokens is free, and keeps it."""

    def __init__(self, deployment: Deployment, prompts: LineFigures) -> None:
        super().__init__()
        tokens = deployment.tokens
        self._prompt_stages = _Stages(stage.timing for stage in prompts.stages)
        self._token_stages = _Stages(stage.timing for stage in tokens.stages)
        self._prompt_size, self._size = prompts.batch_size, tokens.batch_size
        self._prompts: list[list[Row]] = [[] for _ in range(prompts.n_microbatches)]
        self._homes: list[list[int]] = [[] for _ in self._prompts]
        self._rows: list[list[Row]] = [[] for _ in range(tokens.n_microbatches)]
        self._coming: list[list[Row]] = [[] for _ in self._rows]
        self._n_taken = [0] * len(self._rows)
        self._n_stages = len(tokens.stages)
        self._is_away = [False] * len(self._rows)
        self._entry_bytes = max(stage.timing.entry_bytes for stage in prompts.stages)
        self._network = deployment.links.network
        self._link_free_s = 0.0
        self._moving: dict[int, tuple[Row, int]] = {}
        self._n_moved = 0

    def _came(self, now: float) -> None:
        for which, rows in enumerate(self._prompts):
            if not rows:
                self._launch_prompts(now, which)

    def _through(self, now: float, which: int) -> None:
        """Below 0: a prompt microbatch; then a token microbatch; beyond both, a log that came."""
        if which < 0:
            self._prompts_done(now, -1 - which)
        elif which < len(self._rows):
            self._tokens_done(now, which)
        else:
            row, home = self._moving.pop(which)
            self._coming[home].append(row)
            if not self._is_away[home]:
                self._launch_tokens(now, home)

    def _prompts_done(self, now: float, which: int) -> None:
        rows, homes = self._prompts[which], self._homes[which]
        going = set(map(id, self._token(rows, now)))
        for row, home in zip(rows, homes, strict=True):
            if id(row) in going:
                self._move(now, row, home)
            else:
                self._n_taken[home] -= 1
        self._prompts[which], self._homes[which] = [], []
        self._came(now)

    def _move(self, now: float, row: Row, home: int) -> None:
        """The log has been leaving while it was computed; the link may be behind."""
        self._n_moved += 1
        key = len(self._rows) + self._n_moved
        self._moving[key] = (row, home)
        size_bytes = row.arrival.prompt * self._entry_bytes
        began_s = max(self._link_free_s, now - size_bytes / self._network)
        self._link_free_s = began_s + size_bytes / self._network
        self._later(max(now, self._link_free_s), key)

    def _tokens_done(self, now: float, which: int) -> None:
        before = len(self._rows[which])
        self._rows[which] = self._token(self._rows[which], now)
        self._n_taken[which] -= before - len(self._rows[which])
        self._is_away[which] = False
        self._launch_tokens(now, which)
        self._came(now)

    def _launch_prompts(self, now: float, which: int) -> None:
        rows, homes = self._prompts[which], self._homes[which]
        while self._queue and len(rows) < self._prompt_size:
            home = self._emptiest()
            if home is None:
                break
            self._n_taken[home] += 1
            homes.append(home)
            rows.append(self._queue.popleft())
        if rows:
            prompts = [row.arrival.prompt for row in rows]
            self._later(self._prompt_stages.pass_through(now, prompts, []), -1 - which)

    def _emptiest(self) -> int | None:
        """As many microbatches as stages are filled before another one is opened."""
        n_taken, n_stages = self._n_taken, self._n_stages
        for candidates in (range(n_stages), range(n_stages, len(n_taken))):
            home = min(candidates, key=n_taken.__getitem__, default=None)
            if home is not None and n_taken[home] < self._size:
                return home
        return None

    def _launch_tokens(self, now: float, which: int) -> None:
        rows = self._rows[which]
        rows += self._coming[which]
        self._coming[which] = []
        if rows:
            self._is_away[which] = True
            contexts = [row.context - 1 for row in rows]
            self._later(self._token_stages.pass_through(now, [], contexts), which)
