"""Moving strided blocks between buffers: on the processor here, on a GPU by ``packing.cu``.

The same copies can be given as nested blocks (fast on a processor: one assignment for many runs)
or as a table of runs (what the kernel takes). ``move_runs`` is the reference for the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from dvrt.strided import Offsets, RunPairs, StridedCopy, pair_runs

TILE_BYTES = 8192
"""The most that one warp moves at a time; longer runs are cut."""

UNITS = (16, 8, 4, 2, 1)
_WIDE_RUN_BYTES = 1 << 20
_MANY_BLOCKS = 8


def move_blocks(target: memoryview, source: memoryview, blocks: Sequence[StridedCopy]) -> None:
    """Copy every block. Raises ValueError, before or after some bytes moved, outside a buffer."""
    is_scattered = len(blocks) >= _MANY_BLOCKS and sum(b.n_runs for b in blocks) < 4 * len(blocks)
    if is_scattered and _move_alike(target, source, blocks):
        return
    for block in blocks:
        _move_block(target, source, block)


def _move_block(target: memoryview, source: memoryview, block: StridedCopy) -> None:
    if not block.shape:
        start, stop = block.source_offset, block.source_offset + block.run_bytes
        ensure_within(source, start, stop)
        ensure_within(target, block.target_offset, block.target_offset + block.run_bytes)
        end = block.target_offset + block.run_bytes
        target[block.target_offset : end] = source[start:stop]
        return
    try:
        into = _array(target, block.shape, block.target_strides, block.target_offset, block)
        out_of = _array(source, block.shape, block.source_strides, block.source_offset, block)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{block} lies outside its buffer") from error
    np.copyto(into, out_of, casting="no")


def _array(
    buffer: memoryview,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    block: StridedCopy,
) -> Any:
    """The block's runs as an array whose elements are whole runs; NumPy checks the bounds."""
    if block.run_bytes < _WIDE_RUN_BYTES:
        dtype = _element(block.run_bytes)
        return np.ndarray(shape, dtype, buffer=buffer, offset=offset, strides=strides)
    wide = (*shape, block.run_bytes)
    return np.ndarray(wide, np.uint8, buffer=buffer, offset=offset, strides=(*strides, 1))


@cache
def _element(nbytes: int) -> np.dtype[Any]:
    return np.dtype(f"u{nbytes}") if nbytes in (1, 2, 4, 8) else np.dtype(f"V{nbytes}")


def _move_alike(target: memoryview, source: memoryview, blocks: Sequence[StridedCopy]) -> bool:
    """Many blocks of one run size by index, where one side is contiguous and the other aligned."""
    size = blocks[0].run_bytes
    if size >= _WIDE_RUN_BYTES or any(block.run_bytes != size for block in blocks):
        return False
    runs = pair_runs(blocks)
    if _is_dense(runs.target, size) and not (runs.source % size).any():
        packed, scattered, index = target, source, runs.source // size
        into = _rows(packed, int(runs.target[0]), size, index.size)
        table = _rows(scattered, 0, size, len(scattered) // size)
        _ensure_indices(index, table.shape[0])
        np.take(table, index, axis=0, out=into, mode="clip")
        return True
    if _is_dense(runs.source, size) and not (runs.target % size).any():
        index = runs.target // size
        table = _rows(target, 0, size, len(target) // size)
        _ensure_indices(index, table.shape[0])
        table[index] = _rows(source, int(runs.source[0]), size, index.size)
        return True
    return False


def _is_dense(offsets: Offsets, size: int) -> bool:
    return bool((np.diff(offsets) == size).all())


def _rows(buffer: memoryview, offset: int, size: int, count: int) -> Any:
    ensure_within(buffer, offset, offset + size * count)
    return np.ndarray((count, size), np.uint8, buffer=buffer, offset=offset)


def _ensure_indices(index: Offsets, rows: int) -> None:
    if index.size and not 0 <= int(index.min()) <= int(index.max()) < rows:
        raise ValueError(f"a run lies outside a buffer of {rows} such runs")


def ensure_within(buffer: memoryview, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= len(buffer):
        raise ValueError(f"[{start}, {stop}) lies outside a buffer of {len(buffer)} bytes")


def move_runs(target: memoryview, source: memoryview, runs: RunPairs) -> None:
    """Copy run by run: what the kernel does, and what naive streaming costs."""
    triples = zip(runs.source.tolist(), runs.target.tolist(), runs.nbytes.tolist(), strict=True)
    for a, b, nbytes in triples:
        ensure_within(source, a, a + nbytes)
        ensure_within(target, b, b + nbytes)
        target[b : b + nbytes] = source[a : a + nbytes]


class Tiles(NamedTuple):
    """Runs as the kernel wants them, in units of ``unit`` bytes; none longer than a tile.

    ``kernel`` is the name to launch: by thread where runs are short and alike, else by warp.
    """

    kernel: str
    unit: int
    source: Offsets
    target: Offsets
    units: Offsets

    @property
    def total_units(self) -> int:
        return int(self.units.sum())


def tiles(runs: RunPairs, *, source_address: int, target_address: int) -> Tiles:
    """Cut runs to tiles and choose the widest unit that all addresses and sizes allow."""
    cut = _cut(runs, TILE_BYTES)
    everything = np.concatenate([cut.source + source_address, cut.target + target_address])
    common = int(np.gcd.reduce(np.concatenate([everything, cut.nbytes]))) if cut.source.size else 16
    unit = next(u for u in UNITS if common % u == 0)
    sizes = cut.nbytes // unit
    is_alike = bool(sizes.size) and bool((sizes == sizes[0]).all())
    is_short = is_alike and int(sizes[0]) < 32 and int(sizes.sum()) < 1 << 31
    name = f"move_{'short' if is_short else 'long'}_{unit}"
    return Tiles(name, unit, cut.source, cut.target, sizes)


def _cut(runs: RunPairs, limit: int) -> RunPairs:
    counts = -(-runs.nbytes // limit)
    which = np.repeat(np.arange(runs.nbytes.size), counts)
    firsts = np.cumsum(counts) - counts
    steps = (np.arange(which.size) - firsts[which]) * limit
    sizes = np.minimum(runs.nbytes[which] - steps, limit)
    return RunPairs(runs.source[which] + steps, runs.target[which] + steps, sizes)


def kernel_names() -> tuple[str, ...]:
    return tuple([f"move_{kind}_{unit}" for kind in ("short", "long") for unit in UNITS])


def kernel_source() -> str:
    """The text of ``packing.cu``."""
    return files("dvrt.cuda").joinpath("packing.cu").read_text()
