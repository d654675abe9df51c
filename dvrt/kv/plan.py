"""The re-sharding plan: which box of which worker becomes which box of which other worker.

Each side is a grid of stages (layers) × ranks (heads), with its requests in the rows of its
microbatches. Sources are cut where targets begin and end, so that each element moves exactly once
to everybody who holds it. Pure arithmetic; layouts come in only when boxes become bytes.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from dvrt.errors import ConfigError
from dvrt.kv.regions import Box
from dvrt.kv.spans import Span, cut, ensure_partition
from dvrt.wire import message


class Worker(NamedTuple):
    """One process of a side: a pipeline stage and a tensor-parallel rank."""

    stage: int
    rank: int


@message("kv.side")
class Side:
    """How one side holds the cache.

    ``layers``: one interval a stage, a partition. ``heads``: one interval a rank; ranks may hold
    the same heads, together they hold all. ``batches``: per microbatch the request in each row,
    None where a row is free; a request is in one row of one microbatch. Raises ValueError.
    """

    layers: tuple[Span, ...]
    heads: tuple[Span, ...]
    batches: tuple[tuple[int | None, ...], ...]

    def __post_init__(self) -> None:
        ensure_partition(self.layers, "layers")
        ensure_partition(self._elementary_heads(), "heads")
        requests = [r for batch in self.batches for r in batch if r is not None]
        if len(set(requests)) != len(requests):
            raise ValueError(f"a request is in two rows: {sorted(requests)}")

    @property
    def n_layers(self) -> int:
        return self.layers[-1].stop

    @property
    def n_heads(self) -> int:
        return max(span.stop for span in self.heads)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Every worker, stage by stage."""
        return tuple(
            [Worker(s, r) for s in range(len(self.layers)) for r in range(len(self.heads))]
        )

    def places(self) -> dict[int, tuple[int, int]]:
        """(microbatch, row) of each request."""
        return {
            request: (batch, row)
            for batch, rows in enumerate(self.batches)
            for row, request in enumerate(rows)
            if request is not None
        }

    def _elementary_heads(self) -> tuple[Span, ...]:
        edges = sorted({edge for span in self.heads for edge in (span.start, span.stop)})
        spans = [Span.of(a, b) for a, b in itertools.pairwise(edges)]
        return tuple([s for s in spans if any(held.covers(s) for held in self.heads)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One box of one worker's microbatch that becomes one box of another's.

    ``layers``, ``heads`` and ``tokens`` name it for everybody; the boxes are in the coordinates of
    the two workers' own buffers. ``requests`` are in the order of both boxes' rows.
    """

    source: Worker
    source_batch: int
    source_box: Box
    target: Worker
    target_batch: int
    target_box: Box
    layers: Span
    heads: Span
    tokens: Span
    requests: tuple[int, ...]

    def by_layer(self) -> Iterator[Copy]:
        """The same, one layer at a time."""
        for step, layer in enumerate(range(self.layers.start, self.layers.stop)):
            mine = self.source_box.layers.start + step
            theirs = self.target_box.layers.start + step
            yield replace(
                self,
                layers=Span.of(layer, layer + 1),
                source_box=replace(self.source_box, layers=Span.of(mine, mine + 1)),
                target_box=replace(self.target_box, layers=Span.of(theirs, theirs + 1)),
            )


Tokens = Span | Mapping[int, Span]
"""The positions to move: the same of every request, or some of each request named."""


def plan(source: Side, target: Side, tokens: Tokens) -> tuple[Copy, ...]:
    """Every copy that gives the target all it should hold of ``tokens``; stage by stage.

    Positions mean the same on both sides. A request that only the target has raises ConfigError,
    as do different numbers of layers or heads; one that only the source has stays where it is.
    """
    for name in ("n_layers", "n_heads"):
        mine, theirs = getattr(source, name), getattr(target, name)
        if mine != theirs:
            raise ConfigError(f"{name} differs: {mine} at the source, {theirs} at the target")
    groups = list(_row_groups(source, target, tokens))
    found = [
        _copy(source, target, workers, (layers, heads), group)
        for layers, stages in _layer_pairs(source, target)
        for heads, ranks in _head_pairs(source, target)
        for workers in [(Worker(stages[0], ranks[0]), Worker(stages[1], ranks[1]))]
        for group in groups
    ]
    return tuple(found)


def layer_transfers(source: Side, target: Side) -> tuple[tuple[int, int, Span], ...]:
    """(source stage, target stage, layers) of every pair of stages that share layers."""
    return tuple([(*stages, layers) for layers, stages in _layer_pairs(source, target)])


def peers_of_source(source: Side, target: Side, worker: Worker) -> tuple[Worker, ...]:
    """Whom ``worker`` would send something, whatever requests there are."""
    return _distinct(there for here, there in _worker_pairs(source, target) if here == worker)


def peers_of_target(source: Side, target: Side, worker: Worker) -> tuple[Worker, ...]:
    """From whom ``worker`` would get something, whatever requests there are."""
    return _distinct(here for here, there in _worker_pairs(source, target) if there == worker)


def _worker_pairs(source: Side, target: Side) -> Iterator[tuple[Worker, Worker]]:
    for _, (p, q) in _layer_pairs(source, target):
        for _, (r, s) in _head_pairs(source, target):
            yield Worker(p, r), Worker(q, s)


def _distinct(workers: Iterable[Worker]) -> tuple[Worker, ...]:
    return tuple(dict.fromkeys(workers))


class _RowGroup(NamedTuple):
    """Requests that share their microbatches on both sides and their positions."""

    batches: tuple[int, int]
    tokens: Span
    requests: tuple[int, ...]
    rows: tuple[tuple[int, ...], tuple[int, ...]]


def _row_groups(source: Side, target: Side, tokens: Tokens) -> Iterator[_RowGroup]:
    held, wanted = source.places(), target.places()
    groups: dict[tuple[int, int, int, int], list[int]] = defaultdict(list)
    for request, (target_batch, _) in wanted.items():
        span = tokens if isinstance(tokens, Span) else tokens.get(request)
        if span is None or not span.size:
            continue
        if request not in held:
            raise ConfigError(f"request {request} is in no row of the source")
        groups[held[request][0], target_batch, span.start, span.stop].append(request)
    for (source_batch, target_batch, start, stop), requests in sorted(groups.items()):
        yield _RowGroup(
            (source_batch, target_batch),
            Span.of(start, stop),
            tuple(requests),
            (tuple(held[r][1] for r in requests), tuple(wanted[r][1] for r in requests)),
        )


def _layer_pairs(source: Side, target: Side) -> Iterator[tuple[Span, tuple[int, int]]]:
    for p, mine in enumerate(source.layers):
        for q, theirs in enumerate(target.layers):
            if common := mine.overlap(theirs):
                yield common, (p, q)


def _head_pairs(source: Side, target: Side) -> Iterator[tuple[Span, tuple[int, int]]]:
    """Heads and the (source rank, target rank) that move them; holders of the same take turns."""
    edges = {edge for span in source.heads for edge in (span.start, span.stop)}
    for target_rank, wanted in enumerate(target.heads):
        last: tuple[Span, tuple[int, int]] | None = None
        for piece in cut(wanted, edges):
            holders = [rank for rank, held in enumerate(source.heads) if held.covers(piece)]
            ranks = (holders[target_rank % len(holders)], target_rank)
            if last is not None and last[1] == ranks:
                last = Span.of(last[0].start, piece.stop), ranks
                continue
            if last is not None:
                yield last
            last = piece, ranks
        if last is not None:
            yield last


def _copy(
    source: Side,
    target: Side,
    workers: tuple[Worker, Worker],
    what: tuple[Span, Span],
    group: _RowGroup,
) -> Copy:
    layers, heads = what
    boxes = [
        Box(
            layers=layers.seen_from(side.layers[worker.stage].start),
            rows=rows,
            heads=heads.seen_from(side.heads[worker.rank].start),
            tokens=group.tokens,
        )
        for side, worker, rows in zip((source, target), workers, group.rows, strict=True)
    ]
    return Copy(
        source=workers[0],
        source_batch=group.batches[0],
        source_box=boxes[0],
        target=workers[1],
        target_batch=group.batches[1],
        target_box=boxes[1],
        layers=layers,
        heads=heads,
        tokens=group.tokens,
        requests=group.requests,
    )


def of_source(copies: Iterable[Copy], worker: Worker) -> dict[Worker, list[Copy]]:
    """What ``worker`` sends, by the worker that gets it."""
    return _grouped((c.target, c) for c in copies if c.source == worker)


def of_target(copies: Iterable[Copy], worker: Worker) -> dict[Worker, list[Copy]]:
    """What ``worker`` gets, by the worker that sends it."""
    return _grouped((c.source, c) for c in copies if c.target == worker)


def _grouped(pairs: Iterable[tuple[Worker, Copy]]) -> dict[Worker, list[Copy]]:
    out: dict[Worker, list[Copy]] = {}
    for worker, copy in pairs:
        out.setdefault(worker, []).append(copy)
    return out


def uniform_batches(requests: Sequence[int], size: int) -> tuple[tuple[int | None, ...], ...]:
    """Requests in microbatches of ``size`` rows; the last one's free rows are None."""
    if size < 1:
        raise ValueError(f"microbatches of {size} rows")
    padded: list[int | None] = [*requests, *[None] * (-len(requests) % size)]
    return tuple([tuple(padded[i : i + size]) for i in range(0, len(padded), size)])
