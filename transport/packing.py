"""Copying between many buffers and one, in as few steps as there is reason for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dvrt.buffers import Region

JOIN_BELOW_BYTES = 4 << 10
"""Buffers that are smaller on average are joined first: one step in C instead of one each."""


def views_of(regions: Iterable[Region]) -> list[memoryview]:
    """The bytes of each region; most know their view already, which is worth not asking for."""
    return [
        region.owner if type(region.owner) is memoryview else region.view() for region in regions
    ]


def gather(sources: Sequence[memoryview], target: memoryview) -> None:
    """Fill ``target`` with the sources, whose sizes add up to its own."""
    if target.nbytes < len(sources) * JOIN_BELOW_BYTES:
        target[:] = b"".join(sources)
        return
    start = 0
    for source in sources:
        end = start + source.nbytes
        target[start:end] = source
        start = end


def scatter(source: memoryview, targets: Sequence[memoryview]) -> None:
    """Spread ``source`` over the targets, whose sizes add up to its own."""
    start = 0
    for target in targets:
        end = start + target.nbytes
        target[:] = source[start:end]
        start = end


def split(source: memoryview, sizes: tuple[int, ...]) -> list[memoryview]:
    """Views of consecutive parts."""
    parts, start = [], 0
    for size in sizes:
        end = start + size
        parts.append(source[start:end])
        start = end
    return parts
