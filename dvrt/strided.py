"""Copies between two buffers as nested strided blocks, and the same as lists of runs.

One StridedCopy stands for many contiguous runs: a processor copies it with one strided
assignment, a GPU from the runs, a naive program run by run. Knows bytes, not what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]


class RunPairs(NamedTuple):
    """Contiguous runs: from ``source[i]`` to ``target[i]``, ``nbytes[i]`` bytes, for every i."""

    source: Offsets
    target: Offsets
    nbytes: Offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class StridedCopy:
    """Blocks of ``run_bytes`` at every index of ``shape``, on both sides; all units are bytes."""

    run_bytes: int
    shape: tuple[int, ...]
    source_offset: int
    source_strides: tuple[int, ...]
    target_offset: int
    target_strides: tuple[int, ...]

    @property
    def n_runs(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.n_runs * self.run_bytes

    @property
    def source_extent(self) -> tuple[int, int]:
        """The first byte that is read and the one after the last."""
        return self._extent(self.source_offset, self.source_strides)

    @property
    def target_extent(self) -> tuple[int, int]:
        """The first byte that is written and the one after the last."""
        return self._extent(self.target_offset, self.target_strides)

    def _extent(self, offset: int, strides: tuple[int, ...]) -> tuple[int, int]:
        last = sum((n - 1) * stride for n, stride in zip(self.shape, strides, strict=True))
        return offset, offset + last + self.run_bytes

    def shifted(self, *, source: int = 0, target: int = 0) -> Self:
        """The same copy with both sides moved by so many bytes."""
        return replace(
            self,
            source_offset=self.source_offset + source,
            target_offset=self.target_offset + target,
        )

    def reversed(self) -> Self:
        """The copy back."""
        return replace(
            self,
            source_offset=self.target_offset,
            source_strides=self.target_strides,
            target_offset=self.source_offset,
            target_strides=self.source_strides,
        )


def fold(copy: StridedCopy) -> StridedCopy:
    """The same bytes as the fewest runs and axes that nested strides can say."""
    axes = [
        (target, source, count)
        for count, source, target in zip(
            copy.shape, copy.source_strides, copy.target_strides, strict=True
        )
        if count != 1
    ]
    axes.sort()
    run = copy.run_bytes
    kept: list[tuple[int, int, int]] = []
    for target, source, count in axes:
        if not kept and target == source == run:
            run *= count
        elif kept and _continues(kept[-1], target, source):
            inner = kept[-1]
            kept[-1] = (inner[0], inner[1], inner[2] * count)
        else:
            kept.append((target, source, count))
    kept.reverse()
    return replace(
        copy,
        run_bytes=run,
        shape=tuple([count for _, _, count in kept]),
        source_strides=tuple([source for _, source, _ in kept]),
        target_strides=tuple([target for target, _, _ in kept]),
    )


def _continues(inner: tuple[int, int, int], target: int, source: int) -> bool:
    return target == inner[0] * inner[2] and source == inner[1] * inner[2]


def pair_runs(copies: Iterable[StridedCopy]) -> RunPairs:
    """Every run of ``copies``, in their order."""
    sources, targets, sizes = [], [], []
    for (run, shape, source_strides, target_strides), alike in groupby(copies, _form):
        bases = np.array([(c.source_offset, c.target_offset) for c in alike], np.int64)
        source = bases[:, :1] + spread(0, shape, source_strides)
        sources.append(source.ravel())
        targets.append((bases[:, 1:] + spread(0, shape, target_strides)).ravel())
        sizes.append(np.full(source.size, run, np.int64))
    if not sources:
        empty = np.empty(0, np.int64)
        return RunPairs(empty, empty, empty)
    return RunPairs(np.concatenate(sources), np.concatenate(targets), np.concatenate(sizes))


_form = attrgetter("run_bytes", "shape", "source_strides", "target_strides")


def spread(offset: int, shape: Sequence[int], strides: Sequence[int]) -> Offsets:
    """The offset of every index, in C order."""
    out: Offsets = np.full(1, offset, np.int64)
    for count, stride in zip(shape, strides, strict=True):
        out = (out[:, None] + np.arange(count, dtype=np.int64) * stride).ravel()
    return out


def coalesce(offsets: Offsets, nbytes: Offsets) -> tuple[Offsets, Offsets]:
    """The fewest runs that cover the same bytes, by offset. The runs given must not overlap."""
    if offsets.size < 2:
        return offsets, nbytes
    by_offset = np.argsort(offsets, kind="stable")
    offsets, nbytes = offsets[by_offset], nbytes[by_offset]
    is_first = np.concatenate(([True], offsets[1:] != offsets[:-1] + nbytes[:-1]))
    starts = np.flatnonzero(is_first)
    return offsets[starts], np.add.reduceat(nbytes, starts)
