"""What the bytes of a stream mean, as both ends say it: refused where they differ.

Sizes and digests tell that bytes arrived as they left, not that both ends read them alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from dvrt.errors import Corrupted
from dvrt.kv.digest import digest_of
from dvrt.kv.layout import is_same_dtype
from dvrt.kv.plan import Copy, Worker
from dvrt.streaming.setups import Setups
from dvrt.wire import message


@message("stream.terms")
class Terms:
    """Of a whole stream: the order of packed bytes, the type of elements, from whom to whom.

    An empty ``dtype`` is not compared.
    """

    wire: str
    dtype: str
    source: tuple[int, int]
    target: tuple[int, int]

    def ensure(self, theirs: Terms | None, stream: str) -> None:
        """Raise Corrupted naming the first field in which the peer's terms differ."""
        if theirs is None:
            raise Corrupted(f"terms of stream {stream}", expected=self, got=None)
        for name in ("source", "target", "wire"):
            ensure_same(f"{name} of stream {stream}", getattr(self, name), getattr(theirs, name))
        ensure_same_dtype(f"dtype of stream {stream}", self.dtype, theirs.dtype)


def ensure_same(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise Corrupted(what, expected=expected, got=got)


def ensure_same_dtype(what: str, expected: str, got: str) -> None:
    if not is_same_dtype(expected, got):
        raise Corrupted(what, expected=expected, got=got)


def terms_of(setups: Setups, source: Worker, target: Worker) -> Terms:
    return Terms(
        wire=setups.wire.packed_form,
        dtype=setups.wire.dtype,
        source=(source.stage, source.rank),
        target=(target.stage, target.rank),
    )


@message("stream.outline")
class Outline:
    """Of one step: a digest each of the layers, heads, positions and requests of all its copies.

    They may change from step to step, so they belong to its commit record. Requests are in the
    order of the rows that they come from and go to.
    """

    layers: int
    heads: int
    tokens: int
    requests: int

    def ensure(self, theirs: Outline | None, copies: Sequence[Copy], step: str) -> None:
        """Raise Corrupted naming the first field in which the sender's outline differs."""
        for name in FIELDS:
            if theirs is None or getattr(self, name) != getattr(theirs, name):
                mine = [getattr(copy, name) for copy in copies]
                raise Corrupted(f"{name} of {step}", expected=mine, got="others")


FIELDS = ("layers", "heads", "tokens", "requests")


def outline_of(copies: Sequence[Copy]) -> Outline:
    """The same at both ends where both mean the same copies in the same order."""
    return Outline(
        layers=_digest([str(copy.layers) for copy in copies]),
        heads=_digest([str(copy.heads) for copy in copies]),
        tokens=_digest([str(copy.tokens) for copy in copies]),
        requests=_digest([" ".join(map(str, copy.requests)) for copy in copies]),
    )


def _digest(lines: Sequence[str]) -> int:
    return digest_of(["\n".join(lines).encode()])
