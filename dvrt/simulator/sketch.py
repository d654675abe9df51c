"""Quantiles of a stream of numbers in bounded memory: exact for the first many, then buckets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from dvrt.errors import ConfigError
from dvrt.wire import message

EXACT = 10_000
GROWTH = 1.01
"""Each bucket reaches so many times as far as the one before, so quantiles are within 1 %."""
_LOG_GROWTH = math.log(GROWTH)


@message("simulator.sketch")
class SketchState:
    """A sketch as it travels: the exact values, or counts by bucket; the sum as it was added."""

    values: tuple[float, ...]
    buckets: tuple[tuple[int, int], ...]
    n_zeros: int
    n_values: int
    total: float
    smallest: float
    largest: float


class Sketch:
    """Numbers from 0 up. Quantiles of up to 10,000 are exact, of more within 1 %."""

    __slots__ = ("_buckets", "_values", "largest", "n_values", "n_zeros", "smallest", "total")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values: list[float] | None = []
        self._buckets: Counter[int] = Counter()
        self.n_values = self.n_zeros = 0
        self.total = 0.0
        self.smallest, self.largest = math.inf, 0.0
        for value in values:
            self.add(value)

    def __repr__(self) -> str:
        return f"<Sketch {self.n_values} values, median {self.quantile(0.5):g}>"

    def add(self, value: float) -> None:
        self.n_values += 1
        self.total += value
        self.smallest = min(self.smallest, value)
        self.largest = max(self.largest, value)
        if self._values is None:
            self._count(value)
            return
        self._values.append(value)
        if len(self._values) > EXACT:
            self._coarsen()

    def merge(self, other: Sketch) -> None:
        """Add all that the other has seen."""
        self.n_values += other.n_values
        self.total += other.total
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)
        if self._values is not None and other._values is not None:
            self._values += other._values
            if len(self._values) > EXACT:
                self._coarsen()
            return
        self._coarsen()
        for value in other._values or ():
            self._count(value)
        self._buckets.update(other._buckets)
        self.n_zeros += other.n_zeros

    @property
    def mean(self) -> float:
        return self.total / self.n_values if self.n_values else math.nan

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of all lie, interpolated while exact; NaN for none."""
        if not self.n_values:
            return math.nan
        if self._values is not None:
            return exact_quantile(sorted(self._values), share)
        wanted = share * (self.n_values - 1)
        seen = self.n_zeros
        if seen > wanted:
            return 0.0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen > wanted:
                middle = math.exp((bucket + 0.5) * _LOG_GROWTH)
                return min(max(middle, self.smallest), self.largest)
        return self.largest

    def state(self) -> SketchState:
        return SketchState(
            values=tuple(self._values or ()),
            buckets=tuple(self._buckets.items()),
            n_zeros=self.n_zeros,
            n_values=self.n_values,
            total=self.total,
            smallest=self.smallest,
            largest=self.largest,
        )

    @classmethod
    def from_state(cls, state: SketchState) -> Sketch:
        sketch = cls()
        sketch._values = None if state.buckets or state.n_zeros else list(state.values)
        sketch._buckets = Counter(dict(state.buckets))
        sketch.n_zeros, sketch.n_values, sketch.total = state.n_zeros, state.n_values, state.total
        sketch.smallest, sketch.largest = state.smallest, state.largest
        return sketch

    def _coarsen(self) -> None:
        for value in self._values or ():
            self._count(value)
        self._values = None

    def _count(self, value: float) -> None:
        if value <= 0:
            self.n_zeros += 1
        else:
            self._buckets[math.floor(math.log(value) / _LOG_GROWTH)] += 1


def exact_quantile(ordered: list[float], share: float) -> float:
    """Interpolated between neighbours; ConfigError outside [0, 1]."""
    if not 0 <= share <= 1:
        raise ConfigError(f"a quantile of {share}; from 0 to 1")
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
