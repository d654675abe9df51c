"""The rules of the append-only log."""

from __future__ import annotations

import pytest

from dvrt.errors import ProtocolError
from dvrt.kv.log import Log, LogTable


@pytest.fixture
def table() -> LogTable:
    table = LogTable(4, capacity=10)
    table.open(0, seq=7, epoch=1)
    table.extend(0, seq=7, epoch=1, start=0, stop=4)
    return table


def test_a_log_grows_where_it_ends(table: LogTable) -> None:
    table.extend(0, seq=7, epoch=1, start=4, stop=5)
    assert table.get(0) == Log(seq=7, epoch=1, length=5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": 3},
        {"start": 5, "stop": 6},
        {"stop": 4},
        {"stop": 11},
        {"seq": 8},
        {"epoch": 0},
        {"epoch": 2},
    ],
)
def test_anything_else_changes_nothing(table: LogTable, wrong: dict[str, int]) -> None:
    before = repr(table)
    with pytest.raises(ProtocolError):
        table.extend(0, **({"seq": 7, "epoch": 1, "start": 4, "stop": 6} | wrong))
    assert repr(table) == before


def test_a_fork_takes_a_prefix_also_in_place(table: LogTable) -> None:
    table.fork(0, 2, seq=8, epoch=0, length=3)
    table.fork(0, 0, seq=9, epoch=0, length=2)
    assert [log.length for _, log in table] == [2, 3]
    with pytest.raises(ProtocolError, match="cannot be forked at 3"):
        table.fork(0, 1, seq=10, epoch=0, length=3)
    with pytest.raises(ProtocolError, match="cannot be forked"):
        table.fork(3, 1, seq=10, epoch=0, length=0)


def test_truncation_opens_a_new_epoch(table: LogTable) -> None:
    table.truncate(0, seq=7, epoch=2, length=3)
    table.extend(0, seq=7, epoch=2, start=3, stop=4)
    with pytest.raises(ProtocolError):
        table.truncate(0, seq=7, epoch=2, length=1)
    with pytest.raises(ProtocolError):
        table.truncate(0, seq=7, epoch=3, length=9)


def test_closing_another_sequences_slot_is_harmless(table: LogTable) -> None:
    table.close(0, seq=99)
    assert table.get(0) is not None
    table.close(0, seq=7)
    assert table.get(0) is None
