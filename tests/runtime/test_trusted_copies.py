"""In fast mode a copy of an earlier life may have entries of tokens that were drawn again."""

from __future__ import annotations

import random

from dvrt.protocol.messages import GENERATION_BITS, LogRange, SendReplica
from dvrt.stages.log_index import LogIndex

LIFE = 1 << GENERATION_BITS


def order(life: int) -> SendReplica:
    ranges = (LogRange(slot=0, seq=7, epoch=9, start=0, stop=50),)
    return SendReplica(pipeline=0, stage=0, to="x", ranges=ranges, life=life, firms=(30,))


def test_how_much_of_a_copy_is_believed() -> None:
    third = order(3 * LIFE)
    assert third.trusted(0, 3 * LIFE + 5) == 50, "this life's own"
    assert third.trusted(0, 3 * LIFE - 5) == 30, "what this life knew when it began"
    assert third.trusted(0, 2 * LIFE - 5) == 0, "a life that two others came after"
    assert order(0).trusted(0, 5) == 50, "exact mode draws the same again"


def test_a_log_that_changes_its_place_leaves_the_others_theirs() -> None:
    index, number = LogIndex(), 0

    def add(slot: int, seq: int, epoch: int) -> None:
        nonlocal number
        number += 1
        each = LogRange(slot=slot, seq=seq, epoch=epoch, start=0, stop=5)
        index.add(each, pipeline=0, file=number, record=0, at=0, entry_bytes=8)

    add(0, 7, 1)
    add(1, 8, 2)
    index.begin_life()
    add(1, 7, 100)
    add(0, 8, 101)
    assert (index.epoch_of(7), index.epoch_of(8), index.epoch_of(9)) == (100, 101, -1)
    rng = random.Random(0)
    for n in range(50):
        add(rng.randrange(2), 200 + n, 200 + n)
    add(0, 300, 300)
    add(1, 301, 301)
    assert len(index.files) == 2
