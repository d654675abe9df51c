"""Logs that come from others in pieces: nothing is believed before all of it is here and right."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.errors import Corrupted, ProtocolError
from dvrt.kv.copied import Copied
from dvrt.kv.digest import Sum, Tally
from dvrt.kv.log import LogTable
from dvrt.kv.received import MAX_SENDERS, Part, Received, Seal

SLOTS, CAPACITY, FIRST, LAST = 3, 40, 2, 7


def part(**changes: Any) -> Part:
    fields: dict[str, Any] = {
        "slot": 1,
        "seq": 5,
        "epoch": 3,
        "first": FIRST,
        "last": LAST,
        "start": 0,
        "stop": 4,
        "sender": "a",
        "index": 0,
        "nbytes": 8,
        "digest": 9,
    }
    return Part(**{**fields, **changes})


def seal(length: int, stated: Sum, **changes: Any) -> Seal:
    fields: dict[str, Any] = {
        "slot": 1,
        "seq": 5,
        "epoch": 3,
        "first": FIRST,
        "last": LAST,
        "sender": "a",
    }
    return Seal(length=length, stated=stated, **{**fields, **changes})


def total(*parts: Part) -> Sum:
    tally = Tally()
    for each in parts:
        tally.add(each.index, nbytes=each.nbytes, digest=each.digest)
    return tally.sum()


def received() -> Received:
    return Received(SLOTS, CAPACITY, first=FIRST, last=LAST)


class _Sender:
    """One that holds some of the layers and sends them one by one, range after range."""

    def __init__(self, name: str, first: int, last: int, borders: list[int]) -> None:
        self.name, self.first, self.last = name, first, last
        self.parts = []
        for start, stop in pairwise([0, *borders]):
            for layer in range(first, last):
                self.parts.append(
                    part(
                        first=layer,
                        last=layer + 1,
                        start=start,
                        stop=stop,
                        sender=name,
                        index=len(self.parts),
                    )
                )
        self.seal = seal(borders[-1], total(*self.parts), first=first, last=last, sender=name)


@given(
    cuts=st.sets(st.integers(FIRST + 1, LAST - 1)),
    borders=st.sets(st.integers(1, CAPACITY), min_size=1),
    order=st.randoms(use_true_random=False),
    lost=st.none() | st.integers(0, 10_000),
)
def test_a_log_is_whole_when_all_of_all_senders_is_here(
    cuts: set[int], borders: set[int], order: Any, lost: int | None
) -> None:
    edges, ends = [FIRST, *sorted(cuts), LAST], sorted(borders)
    senders = [_Sender(f"s{a}", a, b, ends) for a, b in pairwise(edges)]
    everything = [each for sender in senders for each in sender.parts]
    dropped = None if lost is None else everything[lost % len(everything)]
    state, whole = received(), []
    queues = [[*sender.parts, sender.seal] for sender in senders]
    while any(queues):
        queue = order.choice([each for each in queues if each])
        item = queue.pop(0)
        if item is dropped:
            continue
        if isinstance(item, Part):
            state.admit(item)
        else:
            try:
                whole.append(state.seal(item))
            except Corrupted:
                assert state.refuse(item)
        is_over = not any(queues)
        assert state.held(1, seq=5, epoch=3) == (ends[-1] if is_over and dropped is None else 0)
    told = [length for length in whole if length is not None]
    assert told == ([ends[-1]] if dropped is None else [])


def test_older_logs_are_late_and_newer_ones_begin_anew() -> None:
    state = received()
    first = part()
    assert state.admit(first)
    assert state.seal(seal(4, total(first))) == 4
    assert not state.admit(part(epoch=2, sender="b"))
    assert state.seal(seal(4, total(first), epoch=2)) is None
    assert state.held(1, seq=5, epoch=2) == 0
    assert state.held(1, seq=5, epoch=9) == 4
    assert state.held(1, seq=6, epoch=9) == 0
    assert state.admit(part(epoch=4, seq=6))
    assert state.held(1, seq=5, epoch=9) == 0
    assert state.counters.late == 2


def test_what_steps_use_in_the_slot_is_not_overwritten() -> None:
    state = received()
    assert not state.admit(part(epoch=3), floor=3)
    assert state.admit(part(epoch=3), floor=2)
    state.taken(1, epoch=2)
    assert not state.admit(part(index=1))
    state.taken(1, epoch=3)
    assert state.held(1, seq=5, epoch=3) == 0


def test_a_gap_is_dropped_and_what_is_there_is_not_written_twice() -> None:
    state = received()
    assert state.admit(part(stop=4))
    assert not state.admit(part(start=5, stop=6, index=1))
    assert not state.admit(part(start=1, stop=4, index=2))
    assert state.admit(part(start=2, stop=6, index=3))
    assert (state.counters.gaps, state.counters.repeated) == (1, 1)


def test_a_log_may_grow_within_its_epoch() -> None:
    state = received()
    a, b = part(), part(start=4, stop=9, index=1)
    assert state.admit(a)
    assert state.seal(seal(4, total(a))) == 4
    assert state.admit(b)
    assert state.seal(seal(9, total(a, b))) == 9
    assert state.seal(seal(9, total(a, b))) is None


def test_a_refused_sender_is_believed_no_more_but_another_is() -> None:
    state = received()
    bad = part()
    state.begin(bad)
    assert state.refuse(bad)
    assert not state.refuse(bad)
    assert not state.admit(part(index=1))
    assert state.seal(seal(4, total(bad))) is None
    good = part(sender="b")
    assert state.admit(good)
    assert state.seal(seal(4, total(good), sender="b")) == 4
    assert not state.refuse(part(epoch=2, sender="c"))


def test_an_index_counts_once() -> None:
    state = received()
    assert state.admit(part())
    with pytest.raises(Corrupted, match="index"):
        state.admit(part(start=4, stop=5))


@pytest.mark.parametrize(
    "changes",
    [
        {"slot": SLOTS},
        {"slot": -1},
        {"first": FIRST - 1},
        {"last": LAST + 1},
        {"first": 4, "last": 4},
        {"start": -1},
        {"start": 4, "stop": 4},
        {"stop": CAPACITY + 1},
    ],
    ids=str,
)
def test_what_cannot_be_is_a_breach(changes: dict[str, Any]) -> None:
    state = received()
    with pytest.raises(ProtocolError):
        state.admit(part(**changes))
    assert not state.refuse(part(**changes))


def test_two_sequences_never_share_an_epoch() -> None:
    state = received()
    state.admit(part())
    with pytest.raises(ProtocolError, match="sequences 5 and 6"):
        state.admit(part(seq=6, index=1))


def test_senders_are_bounded() -> None:
    state = received()
    for number in range(MAX_SENDERS):
        state.admit(part(sender=str(number)))
    with pytest.raises(ProtocolError, match="senders"):
        state.admit(part(sender="one more"))


@given(st.data())
def test_a_holder_ends_with_what_the_table_holds(data: st.DataObject) -> None:
    """Logs that open, grow and go back; a copy made by the ranges owed is the log."""
    logs, copied = LogTable(2, 30), Copied()
    content: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    copy: dict[int, tuple[int, list[tuple[int, int]]]] = {}

    def send(n: int) -> bool:
        owed, is_all = copied.next(logs, n)
        for each in owed:
            seq, held = copy.get(each.slot, (each.seq, []))
            held = held if seq == each.seq else []
            assert each.start <= len(held)
            copy[each.slot] = (
                each.seq,
                held[: each.start] + content[each.slot][each.start : each.stop],
            )
        return is_all

    for epoch in range(1, data.draw(st.integers(1, 25))):
        slot, act = data.draw(st.integers(0, 1)), data.draw(st.sampled_from("ogrsf"))
        log = logs.get(slot)
        if act == "o" or log is None:
            logs.open(slot, seq=epoch, epoch=epoch)
            content[slot] = []
            copied.opened(slot, seq=epoch, length=0)
        elif act == "g" and log.length < 30:
            stop = data.draw(st.integers(log.length + 1, 30))
            logs.extend(slot, seq=log.seq, epoch=log.epoch, start=log.length, stop=stop)
            content[slot] += [(p, epoch) for p in range(log.length, stop)]
        elif act == "r":
            keep = data.draw(st.integers(0, log.length))
            logs.open(slot, seq=log.seq, epoch=epoch, length=keep)
            del content[slot][keep:]
            copied.opened(slot, seq=log.seq, length=keep)
        elif act == "s":
            send(data.draw(st.integers(1, 12)))
        elif act == "f":
            copied.forget((slot,))
            copy.pop(slot, None)
    while not send(7):
        pass
    for slot, log in logs:
        assert copy[slot] == (log.seq, content[slot])
