"""Digests of KV bytes: xxh3 of each chunk, and a tally of chunks that a commit record states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import xxhash

from dvrt.errors import Corrupted


def digest_of(buffers: Iterable[Any]) -> int:
    """The 64-bit xxh3 of the buffers' bytes, one after the other."""
    parts = list(buffers)
    if len(parts) == 1:
        return int(xxhash.xxh3_64_intdigest(parts[0]))
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return int(state.intdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """How many chunks and bytes, and the digest over the chunks' digests in their order."""

    chunks: int
    nbytes: int
    digest: int


class Tally:
    """Chunks as they are sent or received; both ends of a transfer come to the same sum.

    Chunks count in the order of their index, whatever order they were added in. Digests of 0 mean
    that digests are off: then the sum proves count and bytes only.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def add(self, index: int, *, nbytes: int, digest: int) -> None:
        """Count a chunk. Raises Corrupted when that index was counted before."""
        if index in self._chunks:
            raise Corrupted("chunk index", expected="each once", got=index)
        self._chunks[index] = (nbytes, digest)

    def sum(self) -> Sum:
        state = xxhash.xxh3_64()
        for index in sorted(self._chunks):
            nbytes, digest = self._chunks[index]
            for value in (index, nbytes, digest):
                state.update(value.to_bytes(8, "big"))
        total = sum(nbytes for nbytes, _ in self._chunks.values())
        return Sum(chunks=len(self._chunks), nbytes=total, digest=int(state.intdigest()))

    def ensure(self, stated: Sum) -> None:
        """Raise Corrupted naming the first field in which ``stated`` differs from what is here."""
        mine = self.sum()
        for name in ("chunks", "nbytes", "digest"):
            expected, got = getattr(stated, name), getattr(mine, name)
            if expected != got:
                raise Corrupted(f"commit record, {name}", expected=expected, got=got)
