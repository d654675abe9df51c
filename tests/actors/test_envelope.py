"""Envelopes and errors on the wire: exact round trips, and rubbish refused by name."""

from __future__ import annotations

import inspect

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dvrt.errors
from dvrt.actors.envelope import Envelope, Kind, pack, pack_error, unpack, unpack_error
from dvrt.errors import (
    ActorGone,
    ConfigError,
    Corrupted,
    DvrtError,
    OutOfMemory,
    Overloaded,
    StageFailed,
    WireError,
)
from dvrt.wire import encode
from tests.actors.crew import Text


@given(
    st.sampled_from(Kind),
    st.text(max_size=50),
    st.text(max_size=50),
    st.integers(0, (1 << 63) - 1),
    st.binary(max_size=200),
)
def test_round_trip(kind: Kind, target: str, sender: str, ask: int, body: bytes) -> None:
    assert unpack(pack(kind, target, sender, ask, body)) == Envelope(
        kind, target, sender, ask, body
    )


@given(st.binary(max_size=300))
def test_rubbish_is_a_wire_error(data: bytes) -> None:
    try:
        note = unpack(data)
    except WireError:
        return
    assert isinstance(note, Envelope)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        [1, "a", "b", 0],
        [1, "a", "b", 0, b"", 0],
        [0, "a", "b", 0, b""],
        [99, "a", "b", 0, b""],
        ["1", "a", "b", 0, b""],
        [[], "a", "b", 0, b""],
        [1, b"a", "b", 0, b""],
        [1, "a", None, 0, b""],
        [1, "a", "b", -1, b""],
        [1, "a", "b", 1.0, b""],
        [1, "a", "b", True, b""],
        [1, "a", "b", 1 << 63, b""],
        [1, "a", "b", 0, "text"],
        {"kind": 1},
    ],
)
def test_wrong_shapes_are_refused(raw: object) -> None:
    with pytest.raises(WireError, match="envelope"):
        unpack(msgpack.packb(raw))


def test_what_no_channel_takes_is_refused_before_it_is_sent() -> None:
    with pytest.raises(WireError, match="limit"):
        pack(Kind.TELL, "a", body=bytes(16 << 20))


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemory("pool", needed_bytes=3, free_bytes=1),
        Overloaded("full", retry_after_s=1.5),
        StageFailed("w", "it broke"),
        ConfigError("bad"),
        ActorGone("left"),
    ],
)
def test_errors_travel_with_class_text_and_fields(error: DvrtError) -> None:
    copy = unpack_error(pack_error(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__


def test_fields_that_cannot_travel_arrive_as_text() -> None:
    copy = unpack_error(pack_error(Corrupted("a", expected=b"1", got=1 << 70)))
    assert isinstance(copy, Corrupted)
    assert copy.expected == "b'1'"
    assert copy.got == str(1 << 70)


def test_foreign_errors_become_actor_gone_and_long_texts_are_cut() -> None:
    assert type(unpack_error(pack_error(ValueError("x")))) is ActorGone
    assert len(str(unpack_error(pack_error(ActorGone("x" * 100_000))))) == 4000


def test_every_class_of_the_tree_can_be_made_again() -> None:
    kinds = [
        kind
        for _, kind in inspect.getmembers(dvrt.errors, inspect.isclass)
        if issubclass(kind, DvrtError)
    ]
    assert len(kinds) > 15
    for kind in kinds:
        error = kind.__new__(kind)
        error.args = ("text",)
        copy = unpack_error(pack_error(error))
        assert type(copy) is kind and copy.args == ("text",)


def test_an_unknown_class_is_a_dvrt_error_and_another_message_is_refused() -> None:
    body = pack_error(ActorGone("x")).replace(b"ActorGone", b"Exception")
    assert type(unpack_error(body)) is DvrtError
    with pytest.raises(WireError, match="Failure"):
        unpack_error(encode(Text(text="x")))
