"""Slots are leased, quarantined and settled by generation; digests and tallies tell."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dvrt.errors import Corrupted, OutOfMemory, StaleLease
from dvrt.kv.arena import Arena
from dvrt.kv.digest import Tally, digest_of


class Slots(RuleBasedStateMachine):
    """The arena against a plain model of who may write where."""

    def __init__(self):
        super().__init__()
        self.arena = Arena(3, slot_bytes=16)
        self.held, self.condemned, self.over = [], [], []

    @rule()
    def lease(self):
        if len(self.held) + len(self.condemned) == 3:
            with pytest.raises(OutOfMemory):
                self.arena.lease()
            return
        lease = self.arena.lease()
        assert lease.slot not in {other.slot for other in self.held + self.condemned}
        self.held.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        lease = data.draw(st.sampled_from(self.held))
        self.arena.release(lease)
        self.held.remove(lease)
        self.over.append(lease)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def quarantine(self, data):
        lease = data.draw(st.sampled_from(self.held))
        self.arena.quarantine(lease)
        self.held.remove(lease)
        self.condemned.append(lease)

    @precondition(lambda self: self.condemned)
    @rule(data=st.data())
    def settle(self, data):
        lease = data.draw(st.sampled_from(self.condemned))
        self.arena.settle(lease)
        self.condemned.remove(lease)
        self.over.append(lease)

    @precondition(lambda self: self.over or self.condemned)
    @rule(data=st.data())
    def use_what_is_over(self, data):
        lease = data.draw(st.sampled_from(self.over + self.condemned))
        late = self.arena.statistics().late
        with pytest.raises(StaleLease):
            self.arena.offset(lease)
        assert self.arena.statistics().late == late + 1
        if lease in self.over:
            with pytest.raises(StaleLease):
                self.arena.settle(lease)

    @invariant()
    def the_house_is_in_order(self):
        self.arena.check_integrity()
        statistics = self.arena.statistics()
        assert statistics.leased == len(self.held)
        assert statistics.quarantined == len(self.condemned)
        assert all(self.arena.offset(lease) == lease.slot * 16 for lease in self.held)


TestSlots = Slots.TestCase


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
