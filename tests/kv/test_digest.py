"""Digests of pieces, and tallies of what both ends count."""

import pytest

from dvrt.errors import Corrupted
from dvrt.kv.digest import Tally, digest_of


def test_a_digest_of_pieces_is_the_digest_of_the_whole():
    assert digest_of([b"key", b"value"]) == digest_of([b"keyvalue"])
    assert digest_of([b"keyvalue"]) != digest_of([b"keyvalve"])


def test_tallies_agree_whatever_the_order_and_name_what_differs():
    here, there = Tally(), Tally()
    for index in (0, 1, 2):
        here.add(index, nbytes=10, digest=index + 5)
    for index in (2, 0):
        there.add(index, nbytes=10, digest=index + 5)
    with pytest.raises(Corrupted, match="chunks"):
        there.ensure(here.sum())
    there.add(1, nbytes=10, digest=99)
    with pytest.raises(Corrupted, match="digest"):
        there.ensure(here.sum())
    with pytest.raises(Corrupted, match="each once"):
        there.add(1, nbytes=10, digest=6)
    again = Tally()
    for index in (2, 1, 0):
        again.add(index, nbytes=10, digest=index + 5)
    again.ensure(here.sum())
