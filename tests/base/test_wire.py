"""Messages round-trip; anything else is a WireError that names the thing."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt import wire
from dvrt.control.steps import Chunk, Decode, DrawFailed, Fork, Open, Step, StepDone
from dvrt.errors import RequestRejected, WireError
from dvrt.requests import FinishReason, Request, SampledToken, SamplingParams

sampling = st.builds(
    SamplingParams,
    temperature=st.just(0.0) | st.floats(0.01, 2),
    top_k=st.integers(0, 100),
    top_p=st.floats(0.01, 1),
    repetition_penalty=st.floats(0.1, 2),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.none() | st.integers(0, 20),
)
small = st.integers(0, 1 << 30)
ids = st.lists(small, max_size=5).map(tuple)
sampled = st.builds(
    SampledToken,
    id=small,
    logprob=st.none() | st.floats(-50, 0),
    alternatives=st.lists(st.tuples(small, st.floats(-50, 0)), max_size=3).map(tuple),
)
drawn = sampled | st.builds(DrawFailed, reason=st.text(max_size=20))
steps = st.builds(
    Step,
    id=small,
    microbatch=small,
    scrubs=ids,
    opens=st.lists(
        st.builds(Open, slot=small, seq=small, epoch=small, sample=small, sampling=sampling),
        max_size=2,
    ).map(tuple),
    forks=st.lists(
        st.builds(
            Fork,
            source=small,
            target=small,
            n_tokens=small,
            seq=small,
            epoch=small,
            sample=small,
            sampling=sampling,
            context_ids=ids,
        ),
        max_size=2,
    ).map(tuple),
    decodes=st.lists(
        st.builds(
            Decode,
            slot=small,
            seq=small,
            epoch=small,
            position=small,
            token=small,
            draw=st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
    chunks=st.lists(
        st.builds(Chunk, slot=small, seq=small, epoch=small, start=small, tokens=ids, draws=ids),
        max_size=2,
    ).map(tuple),
)
dones = st.builds(
    StepDone,
    id=small,
    microbatch=small,
    decoded=st.lists(drawn, max_size=3).map(tuple),
    firsts=st.lists(st.lists(drawn, max_size=2).map(tuple), max_size=2).map(tuple),
    spans=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=4).map(tuple),
)


@given(steps | dones)
def test_messages_come_back_as_they_were(value: Step | StepDone) -> None:
    assert wire.decode(wire.encode(value)) == value


@given(st.binary(max_size=200))
def test_random_bytes_are_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        wire.decode(data)


def _mutants() -> list[tuple[object, str]]:
    good = msgpack.unpackb(wire.encode(SampledToken(id=3)))
    tag, version, values = good
    return [
        ([tag, version + 1, values], "version"),
        (["nonsense", 1, values], "unknown message"),
        ([tag, version, values[:-1]], "fields"),
        ([tag, version, [*values, 1]], "fields"),
        ([tag, version, ["3", *values[1:]]], "sampled.id"),
        ([tag, version, [True, *values[1:]]], "sampled.id"),
        ([tag, version, [3, "x", []]], "sampled.logprob"),
        ([tag, version, [3, None, [[1, 2.0, 3]]]], "sampled.alternatives"),
        ({"tag": tag}, "not a message"),
        ([tag, version], "not a message"),
    ]


@pytest.mark.parametrize(("raw", "text"), _mutants())
def test_a_wrong_message_is_named(raw: object, text: str) -> None:
    with pytest.raises(WireError, match=text):
        wire.decode(msgpack.packb(raw))


def test_a_message_that_refuses_its_values_is_refused_on_the_wire_too() -> None:
    tag, version, values = msgpack.unpackb(wire.encode(SamplingParams()))
    values[0] = math.nan
    with pytest.raises(RequestRejected, match="temperature is nan"):
        SamplingParams(temperature=math.nan)
    with pytest.raises(WireError, match="temperature"):
        wire.decode(msgpack.packb([tag, version, values]))


def test_sizes_are_limited_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    data = wire.encode(DrawFailed(reason="x" * 100))
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 50)
    with pytest.raises(WireError, match="limit 50"):
        wire.encode(DrawFailed(reason="x" * 100))
    with pytest.raises(WireError, match="limit 50"):
        wire.decode(data)


def test_only_messages_travel() -> None:
    with pytest.raises(WireError, match="int is not a message"):
        wire.encode(3)
    with pytest.raises(ValueError, match="two messages"):
        wire.message("sampled")(type("Twin", (), {"__annotations__": {}}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"prompt_ids": ()}, "prompt is empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"n": 0}, "n is 0"),
        ({"n": 1000}, "n is 1000"),
        ({"deadline_s": -1.0}, "deadline_s"),
        ({"deadline_s": math.inf}, "deadline_s"),
    ],
)
def test_requests_that_cannot_be_are_refused(changes: dict[str, object], text: str) -> None:
    fields = {"id": "r", "prompt_ids": (1,), "max_tokens": 1, "sampling": SamplingParams()}
    with pytest.raises(RequestRejected, match=text):
        Request(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 1 << 64},
        {"logprobs": 21},
    ],
)
def test_sampling_values_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(RequestRejected, match=next(iter(changes))):
        SamplingParams(**changes)


def test_enums_travel_by_value() -> None:
    assert FinishReason("length") is FinishReason.LENGTH
